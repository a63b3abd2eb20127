"""`vocabseg calibrate --regions`: what region budgets cost, which one is chosen, and what the bundle then does."""

import json
import shutil
from pathlib import Path

import pytest

from vocabseg import cli
from vocabseg.calibration.report.region_report import RegionReport, table
from vocabseg.calibration.trials.accuracy_budget import AccuracyBudget, parse_budget
from vocabseg.calibration.trials.region_trials import GRID, RegionTrial, fewest_within, with_budget
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.segmenter.segmenter import Segmenter


def trial(crops: float, agreement: float, miou: float | None = None, **budget: float) -> RegionTrial:
    return RegionTrial(dict(budget), 10, 20.0, crops, miou, agreement, crops / 100)


TRIALS = [
    trial(20, 100.0, 80.0),
    trial(12, 99.8, 79.9, share_iou=0.9),
    trial(8, 99.2, 78.0, share_iou=0.7),
    trial(12, 99.9, 79.0, share_iou=0.95, min_objectness=0.1),
]


@pytest.mark.parametrize(
    ("text", "chosen"), [("disagreement=0.5", 3), ("disagreement=1", 2), ("disagreement=0", 0), ("miou=0.5", 1)]
)
def test_the_fewest_crops_inside_the_budget(text: str, chosen: int) -> None:
    assert fewest_within(TRIALS, parse_budget(text, True)) is TRIALS[chosen]


def test_a_budget_replaces_the_bundle_s_own() -> None:
    region = with_budget(open_bundle(None).manifest.region, {"max_regions": 5, "share_iou": 0.9})
    assert with_budget(region, {"share_iou": 0.8}).budget == "share_iou=0.8"
    assert not with_budget(region, {}).budgeted
    assert [name for name, *_ in table(RegionReport("b", "c", AccuracyBudget(miou=1), TRIALS, TRIALS[1]))[1:]].index(
        "<-"
    ) == 1


def test_the_command_puts_the_budget_into_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, report = tmp_path / "bundle", tmp_path / "report"
    shutil.copytree(demo_folder(), bundle)
    arguments = ["--limit", "2", "--budget", "disagreement=1", "--output", str(report), "--quiet"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["calibrate", str(bundle), "--regions", *arguments])
    assert caught.value.code in (None, 0)
    data = json.loads((report / "regions.json").read_text())
    assert [one["budget"] for one in data["trials"]] == list(GRID)
    first, shared = data["trials"][:2]
    assert first["agreement"] == 100
    assert shared["crops"] < first["crops"] == first["regions"] == shared["regions"]
    crops = [one["crops"] for one in data["trials"][1:5]]
    assert crops == sorted(crops, reverse=True)  # the lower the IoU, the more share
    kept = [one for one in data["trials"] if one["agreement"] >= 99]
    assert data["chosen"]["crops"] == min(one["crops"] for one in kept)
    manifest = open_bundle(bundle).manifest
    assert manifest.region == with_budget(open_bundle(None).manifest.region, data["chosen"]["budget"])
    evidence = manifest.provenance["region_budget"]
    assert evidence["budget"] == data["chosen"]["budget"]
    assert evidence["crops_per_image"] == {"without": first["crops"], "with": data["chosen"]["crops"]}
    assert evidence["images"] == 2
    assert evidence["disagreement_percent"] == pytest.approx(100 - data["chosen"]["agreement"])
    scenes = sorted(report.rglob("images/*/*.*"))
    segmenter = Segmenter(open_bundle(bundle), "cpu", "onnxruntime")
    assert sum(segmenter.propose(path).crops for path in scenes) == 2 * data["chosen"]["crops"]
    assert f"| {first['crops']:.1f} |" in (report / "regions.md").read_text()
    assert (report / "regions.png").stat().st_size > 10_000
    assert str(report / "regions.png") in capsys.readouterr().out
