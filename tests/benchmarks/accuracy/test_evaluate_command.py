"""`vocabseg evaluate` as a user meets it: what it says and writes, and how it refuses."""

import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.benchmarks.accuracy.fakes import FakeSource, write_world
from vocabseg.benchmarks.datasets.dataset import DatasetError
from vocabseg.benchmarks.scenes.files import write_world as write_scenes_world
from vocabseg.benchmarks.scenes.world import CLASSES
from vocabseg.commands import evaluate as command
from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.errors import BundleError, OutputError, VocabsegError

app = typer.Typer()
app.command()(command.evaluate)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny world, and a segmenter that gets a third of the green squares wrong instead of any bundle."""
    write_world(tmp_path / "world")
    monkeypatch.setattr(command, "_source", lambda *_: FakeSource(tmp_path / "world", 1 / 3))
    return tmp_path / "world"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_data_set_s_classes_may_have_synonyms_and_there_may_be_other(tmp_path: Path) -> None:
    """The demo model by names that it does not know beside its own, and with a contrast class."""
    write_scenes_world(tmp_path, "test", 2)
    common = ("--dataset", "world", "--data-dir", tmp_path, "--quiet", "--device", "cpu", "--measure", "semantic")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"{name}|class {number}" for number, name in enumerate(CLASSES)))
    assert run(*common, "--output", tmp_path / "more", "--classes", f"@{names}", "--other").exit_code == 0
    more = json.loads((tmp_path / "more" / "accuracy.json").read_text())
    assert more["source"]["vocabulary"]
    assert more["classes"] == list(CLASSES)
    assert more["semantic"]["miou"] > 50
    assert "with other settings" in str(refused(*common, "--output", tmp_path / "more", "--other"))
    wrong = refused(*common, "--output", tmp_path / "wrong", "--classes", "red circle, blue circle")
    assert "the vocabulary has 'blue circle' for 'orange circle' of world" in str(wrong)
    assert not (tmp_path / "wrong").exists()


def test_crops_are_counted_and_the_region_budget_is_told(tmp_path: Path) -> None:
    write_scenes_world(tmp_path, "test", 2)
    common = ("--dataset", "world", "--data-dir", tmp_path, "--quiet", "--device", "cpu", "--measure", "semantic")
    crops, texts = [], []
    for name, settings in (
        ("none", ()),
        ("budget", ("--set", "region.share_iou=0.8", "--set", "region.max_regions=9")),
    ):
        assert run(*common, "--output", tmp_path / name, *settings).exit_code == 0
        crops.append(json.loads((tmp_path / name / "accuracy.json").read_text())["crops"])
        texts.append((tmp_path / name / "accuracy.md").read_text())
    assert 0 < crops[1] <= 9 < crops[0] <= 20
    assert f"{crops[0]:.1f} crops encoded per image; region budget: none" in texts[0]
    assert f"{crops[1]:.1f} crops encoded per image; region budget: share_iou=0.8 max_regions=9" in texts[1]


def refused(*arguments: object) -> VocabsegError:
    result = run(*arguments)
    assert isinstance(result.exception, VocabsegError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


def test_figures_report_and_progress(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    result = run("my-bundle", "--dataset", "world", "--data-dir", world, "--output", output)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [
        str(output / name)
        for name in ("accuracy.md", "per_class.png", "confusion.png", "examples.png", "accuracy.json")
    ]
    assert all(Path(line).is_file() for line in result.stdout.split())
    said = result.stderr.splitlines()
    assert said[0].startswith("Evaluating fake 0.333")
    assert said[0].endswith("on 6 images of world, 4 classes")
    assert said[1] == "  1 of 6 images, mIoU 80.56 so far"
    assert "mIoU 85.42   pAcc" in result.stderr
    assert "of unseen classes 66.67" in result.stderr
    again = run("my-bundle", "--dataset", "world", "--data-dir", world, "--output", output)
    assert "6 of 6 images are done already" in again.stderr


def test_options(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    common = ("b", "-d", "world", "--data-dir", world, "-o", output)
    result = run(*common, "--limit", 2, "--measure", "semantic", "--quiet")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "PQ" not in (output / "accuracy.md").read_text()
    assert run(*common, "--limit", 0).exit_code == 2
    assert "no split" in str(refused("b", "-d", "voc-20", "--data-dir", world, "--split", "tset"))


def test_broken_images_are_told(world: Path, tmp_path: Path) -> None:
    (world / "annotations" / "val" / "002.png").write_bytes(b"")
    result = run("b", "-d", "world", "--data-dir", world, "-o", tmp_path / "report")
    assert result.exit_code == 0
    assert "1 image was left out, such as:" in result.stderr
    assert "002.png cannot be read" in result.stderr


def test_a_report_says_with_what_it_was_measured(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = demo_folder()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    common = ("-d", "world", "--data-dir", world, "--limit", 1, "--measure", "semantic", "-q")
    for number, options in enumerate((("--engine", "onnxruntime"), ("--set", "region.mask_threshold=0.4"))):
        result = run(bundle, *common, *options, "-o", tmp_path / str(number))
        assert result.exit_code == 0, result.output
    first, second = (json.loads((tmp_path / name / "accuracy.json").read_text()) for name in "01")
    assert (first["settings"]["region"]["mask_threshold"], second["settings"]["region"]["mask_threshold"]) == (0.5, 0.4)
    assert abs(datetime.fromisoformat(first["date"]) - datetime.now(UTC)) < timedelta(hours=1)
    assert first["versions"]["onnxruntime"] == version("onnxruntime")
    assert '"mask_threshold": 0.5' in (tmp_path / "0" / "accuracy.md").read_text()


def test_the_report_of_another_model_is_kept(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "report"
    common = ("b", "-d", "world", "--data-dir", world, "-q")
    assert run(*common, "-o", output).exit_code == 0
    before = (output / "accuracy.json").read_bytes()
    monkeypatch.setattr(command, "_source", lambda *_: FakeSource(world, 2 / 3))
    error = refused(*common, "-o", output)
    assert isinstance(error, OutputError)
    assert "holds the report of fake 0.333" in str(error)
    assert (output / "accuracy.json").read_bytes() == before
    monkeypatch.chdir(tmp_path)
    for wrong in (0.25, 0.5):
        monkeypatch.setattr(command, "_source", lambda *_, wrong=wrong: FakeSource(world, wrong))
        assert run(*common).exit_code == 0
        assert (tmp_path / f"accuracy-world-fake_{wrong}-fake" / "accuracy.json").is_file()


def test_list_names_every_data_set_and_its_files() -> None:
    text = run("--list").stdout
    assert "coco-stuff-171" in text
    assert "coco/stuffthingmaps/val2017/*.png" in text
    assert "cityscapes/gtFine/val/*/*_gtFine_labelIds.png" in text


def test_what_is_missing_is_said_in_one_line(world: Path, tmp_path: Path) -> None:
    assert "--dataset is missing: give one of coco-stuff-171" in str(refused("b"))
    assert "--data-dir is missing" in str(refused("b", "-d", "voc-15"))
    error = refused("b", "-d", "voc-15", "--data-dir", tmp_path)
    assert isinstance(error, DatasetError)
    assert "VOC2012/JPEGImages/*.jpg" in str(error)
    assert "voc-15" in str(refused("b", "-d", "voc15", "--data-dir", tmp_path))
    blocked = tmp_path / "file"
    blocked.write_text("")
    error = refused("b", "-d", "world", "--data-dir", world, "-o", blocked / "report")
    assert isinstance(error, OutputError)


def test_models_that_do_not_go_together(tmp_path: Path) -> None:
    common = ("-d", "voc-15", "--data-dir", tmp_path)
    checkpoint = tmp_path / "model.pth"
    assert "either a bundle" in str(refused("bundle", "--reference", checkpoint, *common))
    assert "go with --reference" in str(refused("bundle", "--config", "zsseg-r50-vitb16-vild", *common))
    assert "--config NAME" in str(refused("--reference", checkpoint, *common))
    configured = ("--reference", checkpoint, "--config", "zsseg-r50-vitb16-vild", *common)
    assert "--engine" in str(refused(*configured, "--engine", "openvino"))
    assert "no checkpoint" in str(refused(*configured))
    assert isinstance(refused("nowhere", *common), BundleError)
