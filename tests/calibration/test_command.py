"""`vocabseg calibrate` from images to a bundle that runs in int8."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import files_hashed
from vocabseg import cli
from vocabseg.calibration.graphs.linear_nodes import linear_nodes, load_graph
from vocabseg.calibration.graphs.quantize import write_quantised
from vocabseg.calibration.graphs.scales import Scheme
from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.calibration.samples.calibration_images import choose_images
from vocabseg.export.half.recipe import read_recipe
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.manifest import file_record
from vocabseg.runtime.bundle.variants import new_variants
from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.segmenter.segmenter import Segmenter


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["calibrate", *map(str, arguments)])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with int8 graphs, and the report's folder."""
    folder = tmp_path_factory.mktemp("calibration")
    bundle, report = folder / "bundle", folder / "report"
    shutil.copytree(demo_folder(), bundle)
    with files_hashed() as hashed:
        assert run(bundle, "--count", 32, "--precision", "int8", "--limit", 4, "--output", report, "--quiet") == 0
    assert set(hashed.values()) == {1}, hashed
    return bundle, report


def test_the_bundle_runs_in_int8(calibrated: tuple[Path, Path]) -> None:
    bundle = open_bundle(calibrated[0])
    graphs = bundle.manifest.variants["int8"]
    assert graphs["text_encoder"] == bundle.manifest.graphs["text_encoder"]
    for name in ("image_encoder", "proposal"):
        record = graphs[name]
        assert record.file == f"graphs/int8/{name}.onnx"
        assert record.total_bytes < 0.31 * bundle.graph(name).total_bytes
        assert record.provenance["source"] == bundle.graph(name).digest()
        assert record.provenance["images"]["count"] == 32
        assert record.provenance["versions"]["onnxruntime"]
    image = choose_images(None, 32, 0, print)[0][0].read()
    vocabulary = Segmenter(bundle).vocabulary()
    exact = Segmenter(bundle, "cpu", "onnxruntime", "float32")(image, vocabulary).labels
    for engine in ("onnxruntime", "openvino"):
        segmenter = Segmenter(bundle, "cpu", engine, "int8")
        assert (segmenter(image, vocabulary).labels == exact).mean() > 0.97, engine
        assert segmenter.engine("text_encoder").key.endswith("float32")


def test_the_report(calibrated: tuple[Path, Path]) -> None:
    report = calibrated[1]
    data = json.loads((report / "calibration.json").read_text())
    assert [trial["precision"] for trial in data["trials"]] == ["float32", "bfloat16", "int8"]
    assert data["chosen"] in data["trials"]
    assert data["trials"][0]["agreement"] == 100
    plan = data["plans"]["int8"]["proposal"]
    assert len(plan["tried"]) > 3
    losses = [block["loss"] for block in plan["blocks"]]
    assert losses == sorted(losses, reverse=True)
    page = (report / "calibration.md").read_text()
    assert "| int8 | openvino |" in page
    assert read_recipe(report / "recipe-int8.toml").precision == "int8"
    assert (report / "calibration.png").stat().st_size > 20_000


def test_what_stays_high_is_decided_on_the_graph_as_it_is_written(calibrated: tuple[Path, Path]) -> None:
    values = json.loads((calibrated[1] / "search.json").read_text())["values"]
    (trials,) = (value for key, value in values.items() if key.startswith("int8/literal/"))
    assert (trials[1]["engine"], trials[1]["precision"], trials[1]["seconds"]) == ("onnxruntime", "int8", None)


def test_a_precision_that_is_not_there_names_the_command() -> None:
    with pytest.raises(BundleError, match="vocabseg calibrate"):
        Segmenter(open_bundle(None), "cpu", "onnxruntime", "int8")


def test_the_built_in_model_is_never_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo_folder().rglob("*")}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(demo_folder())
    for precision in ("int8", "float16"):  # the command that the error names works on a copy
        with pytest.raises(BundleError, match="`vocabseg calibrate --output report` makes a copy of it"):
            open_bundle(None).graph("proposal", precision)
    for folder in (demo_folder(), tmp_path / "link"):
        assert run(folder, "--count", 32, "--precision", "int8", "--limit", 2, "--output", "report") == 2
        assert "is the built-in demo model" in capsys.readouterr().err.splitlines()[-1]
        with pytest.raises(BundleError, match="is the built-in demo model"), new_variants(folder):
            pass
    assert not (tmp_path / "report").exists()
    assert {path: path.stat().st_mtime_ns for path in demo_folder().rglob("*")} == before


def test_the_copy_of_the_demo_model_takes_no_other_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocabseg-demo").mkdir()
    (tmp_path / "vocabseg-demo" / "mine.txt").touch()
    assert run("--count", 32, "--limit", 2) == 2
    assert "that folder holds other files" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.txt", "vocabseg-demo"]


def test_the_report_replaces_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vocabseg.benchmarks.scenes.files import write_scenes

    photos, bundle = tmp_path / "photos", tmp_path / "bundle"
    photos.mkdir()
    shutil.copytree(demo_folder(), bundle)
    write_scenes(photos, 33, size=(96, 96))
    shutil.move(next(photos.glob("*.*")), photos / "calibration.png")
    before = (photos / "calibration.png").read_bytes()
    assert run(bundle, "--images", photos, "--count", 32, "--precision", "int8", "--output", photos) == 2
    assert "calibration.png' would replace the input" in capsys.readouterr().err
    assert (photos / "calibration.png").read_bytes() == before


def test_a_quantised_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_folder(), bundle)
    path = bundle / "image_encoder.onnx"
    seen: dict[str, Statistics] = {}
    for target in linear_nodes(load_graph(path)):
        seen[target.activation] = Statistics()
        seen[target.activation].update(np.ones((2, 2), np.float32))
    record = write_quantised(path, tmp_path / "image_encoder.onnx", Scheme(), seen)
    for file in tmp_path.glob("image_encoder.onnx*"):
        shutil.copy(file, bundle / file.name)
    text = json.loads((bundle / "manifest.json").read_text())
    fresh = file_record(bundle, "image_encoder.onnx")
    text["graphs"]["image_encoder"] |= {"bytes": fresh.bytes, "sha256": fresh.sha256}
    external = [file_record(bundle, one.file) for one in record.external]
    text["graphs"]["image_encoder"]["external"] = [
        {"file": one.file, "bytes": one.bytes, "sha256": one.sha256} for one in external
    ]
    (bundle / "manifest.json").write_text(json.dumps(text))
    assert run(bundle, "--count", 32, "--precision", "int8", "--limit", 2, "--output", tmp_path / "report") == 2
    assert "quantised already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "int4"], "give some of float16, int8, fp8"),
        (["--budget", "miou=none"], "is not a number"),
        (["--count", "5"], "32 to 512"),
        (["--images", "/nowhere"], "no such folder"),
        (["--dataset", "voc-20"], "--data-dir is missing"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(demo_folder(), *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
