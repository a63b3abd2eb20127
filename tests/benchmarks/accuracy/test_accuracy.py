"""Evaluation from end to end on a tiny world: figures, going on after an interruption, workers, broken images."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.accuracy.fakes import NAMES, FakeSegmenter, FakeSource, write_world
from vocabseg.benchmarks.accuracy.evaluate import Accuracy, evaluate, largest_confusions
from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.benchmarks.accuracy.report import summary_lines, to_markdown, write_report
from vocabseg.benchmarks.datasets.dataset import DatasetError
from vocabseg.benchmarks.datasets.registry import get_dataset
from vocabseg.runtime.errors import ConfigurationError


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_world(tmp_path / "world")
    return tmp_path / "world"


def test_the_truth_scores_100(world: Path) -> None:
    accuracy = evaluate(FakeSegmenter(world), get_dataset("world", world)).accuracy
    assert accuracy.semantic is not None
    assert accuracy.panoptic is not None
    assert accuracy.masks is not None
    assert accuracy.semantic.miou == 100
    assert accuracy.semantic.sets["base"].hiou == 100
    assert accuracy.panoptic.all.pq == pytest.approx(100)
    assert accuracy.masks.ap == pytest.approx(100)
    assert accuracy.images == 6
    assert accuracy.confusions == []


def test_known_mistakes_give_known_figures(world: Path) -> None:
    # Each green square has 120 pixels, a third of which are called red disc.
    evaluation = evaluate(FakeSegmenter(world, wrong=1 / 3), get_dataset("world", world))
    accuracy = evaluation.accuracy
    assert accuracy.semantic is not None
    red, green = 100 * 120 / 160, 100 * 80 / 120
    assert accuracy.semantic.iou == [pytest.approx(red), pytest.approx(green), 100, 100]
    base = accuracy.semantic.sets["base"]
    assert base.miou == pytest.approx((red + 200) / 3)
    assert base.complement_miou == pytest.approx(green)
    assert base.hiou == pytest.approx(2 / (1 / base.miou + 1 / base.complement_miou))
    (confusion,) = accuracy.confusions
    assert (confusion.true, confusion.predicted, confusion.pixels) == ("green square", "red disc", 6 * 40)
    assert confusion.share == pytest.approx(100 / 3)
    # 120 / 160 = 0.75 is right at the thresholds 0.50 ... 0.75, 80 / 120 = 0.667 at 0.50 ... 0.65.
    assert accuracy.masks is not None
    assert accuracy.masks.per_class == [pytest.approx(60), pytest.approx(40), None, None]
    assert accuracy.panoptic is not None
    assert accuracy.panoptic.pq[:2] == [pytest.approx(red), pytest.approx(green)]
    assert [example.miou for example in evaluation.worst] == sorted(example.miou for example in evaluation.worst)
    assert evaluation.worst[0].labels.shape == evaluation.worst[0].truth.shape == (24, 30)


def test_an_interrupted_evaluation_goes_on(world: Path, tmp_path: Path) -> None:
    dataset, output = get_dataset("world", world), tmp_path / "out"

    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(FakeSegmenter(world, 0.5), dataset, output, save_every=3, progress=stop)
    said: list[str] = []
    steps: list[tuple[str, int, int]] = []
    segmenter = FakeSegmenter(world, 0.5)
    resumed = evaluate(
        segmenter, dataset, output, examples=0, progress=lambda *step: steps.append(step), notify=said.append
    )
    assert segmenter.calls == 2
    assert [step[1:] for step in steps] == [(5, 6), (6, 6)]
    assert steps[-1][0] == f"mIoU {resumed.confusion.mean_iou():.2f} so far"
    assert said == ["4 of 6 images are done already: going on from there"]
    assert resumed.accuracy == evaluate(FakeSegmenter(world, 0.5), dataset, examples=0).accuracy


def test_a_limit_can_be_raised_but_not_lowered(world: Path, tmp_path: Path) -> None:
    dataset, output = get_dataset("world", world), tmp_path / "out"
    assert evaluate(FakeSegmenter(world), dataset, output, limit=2).accuracy.images == 2
    segmenter = FakeSegmenter(world)
    assert evaluate(segmenter, dataset, output, limit=5, examples=0).accuracy.images == 5
    assert segmenter.calls == 3
    with pytest.raises(ConfigurationError, match="5 images, more than the 3"):
        evaluate(FakeSegmenter(world), dataset, output, limit=3)
    assert evaluate(segmenter, dataset, output, limit=5, examples=0).accuracy.images == 5


@pytest.mark.parametrize("change", ["model", "images", "classes", "measures"])
def test_other_things_start_again(change: str, world: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    evaluate(FakeSegmenter(world), get_dataset("world", world), output)
    segmenter, measures = FakeSegmenter(world, 0.5 if change == "model" else 0.0), ("semantic", "panoptic", "masks")
    if change == "images":
        Image.fromarray(np.zeros((24, 30, 3), np.uint8)).save(world / "images" / "val" / "003.png")
    elif change == "classes":
        data = json.loads((world / "classes.json").read_text())
        data["things"] = [0]
        data["seen"] = [True, False, True, True]
        (world / "classes.json").write_text(json.dumps(data))
        dataset = get_dataset("world", world)
        dataset.evaluation_sets = {"base": (0, 2)}
    elif change == "measures":
        measures = ("semantic",)
    if change != "classes":
        dataset = get_dataset("world", world)
    said: list[str] = []
    found = evaluate(segmenter, dataset, output, measures=measures, examples=0, notify=said.append)
    assert segmenter.calls == 6
    assert len(said) == 1
    assert change in said[0]
    assert said[0].endswith("starting again")
    assert found.accuracy.images == 6


def test_damaged_partial_results_start_again(world: Path, tmp_path: Path) -> None:
    dataset, output = get_dataset("world", world), tmp_path / "out"
    evaluate(FakeSegmenter(world), dataset, output)
    (output / "partial" / "state.json").write_text("{")
    said: list[str] = []
    assert evaluate(FakeSegmenter(world), dataset, output, notify=said.append).accuracy.images == 6
    assert "cannot be read" in said[0]


def test_broken_images_are_listed(world: Path, tmp_path: Path) -> None:
    dataset = get_dataset("world", world)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(world / "annotations" / "val" / "001.png")
    (world / "annotations" / "val" / "004.png").write_bytes(b"")
    segmenter = FakeSegmenter(world, dead=("002",))
    segmenter.dataset = get_dataset("world", world)
    good = FakeSegmenter(world)

    def segment(image: Path, vocabulary: object) -> object:
        if image.stem == "001":
            return good(world / "images" / "val" / "000.png", vocabulary)
        return segmenter(image, vocabulary)

    accuracy = evaluate(segment, dataset, tmp_path / "out").accuracy
    assert accuracy.images == 3
    assert list(accuracy.broken) == ["001", "002", "004"]
    assert "30 x 24 pixels, its annotation 5 x 5" in accuracy.broken["001"]
    assert "on purpose" in accuracy.broken["002"]
    assert "cannot be read" in accuracy.broken["004"]
    assert "001" in to_markdown(accuracy)
    # They get another chance.
    write_world(world)
    assert evaluate(segment, get_dataset("world", world), examples=0).accuracy.images == 5


def test_nothing_measured_is_an_error(world: Path) -> None:
    dead = tuple(f"{number:03d}" for number in range(6))
    with pytest.raises(DatasetError, match=r"none of the 6 images of world .* on purpose"):
        evaluate(FakeSegmenter(world, dead=dead), get_dataset("world", world))


def test_workers_find_the_same(world: Path, tmp_path: Path) -> None:
    dataset = get_dataset("world", world)
    alone = evaluate(FakeSource(world, 0.25), dataset)
    shared = evaluate(FakeSource(world, 0.25), dataset, tmp_path / "out", workers=2)
    assert shared.accuracy == alone.accuracy
    np.testing.assert_array_equal(shared.worst[0].labels, alone.worst[0].labels)


def test_arguments_that_cannot_be_used(world: Path) -> None:
    dataset, segmenter = get_dataset("world", world), FakeSegmenter(world)
    with pytest.raises(ConfigurationError, match="limit is 0"):
        evaluate(segmenter, dataset, limit=0)
    with pytest.raises(ConfigurationError, match="workers is 0"):
        evaluate(segmenter, dataset, workers=0)
    with pytest.raises(ConfigurationError, match="other processes"):
        evaluate(segmenter, dataset, workers=2)
    with pytest.raises(ConfigurationError, match="unknown measure pixels"):
        evaluate(segmenter, dataset, measures=["pixels"])


def test_the_report(world: Path, tmp_path: Path) -> None:
    evaluation = evaluate(FakeSegmenter(world, 0.5), get_dataset("world", world))
    files = write_report(evaluation, tmp_path / "report")
    assert {path.name for path in files} == {
        "accuracy.md",
        "accuracy.json",
        "per_class.png",
        "confusion.png",
        "examples.png",
    }
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 150
                assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    stored = msgspec.json.decode((tmp_path / "report" / "accuracy.json").read_bytes(), type=Accuracy)
    assert stored == evaluation.accuracy
    text = (tmp_path / "report" / "accuracy.md").read_text()
    assert "![examples.png](examples.png)" in text
    assert "| green square | red disc |" in text
    assert "| green square | unseen | 50.00 |" in text
    assert any("harmonic mean" in line for line in summary_lines(evaluation.accuracy))


def test_the_report_without_matplotlib(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vocabseg.benchmarks.accuracy.report.find_spec", lambda name: None)
    said: list[str] = []
    evaluation = evaluate(FakeSegmenter(world), get_dataset("world", world))
    files = write_report(evaluation, tmp_path, said.append)
    assert [path.name for path in files] == ["accuracy.md", "accuracy.json"]
    assert "matplotlib" in said[0]
    assert "png" not in files[0].read_text()


def test_pictures_of_very_many_classes(tmp_path: Path) -> None:
    from vocabseg.benchmarks.accuracy.plots import plot_classes, plot_confusion

    random = np.random.default_rng(1)
    classes = [f"class {index}, also called ${index}$" for index in range(300)]
    counts = random.integers(0, 5, (301, 301))
    counts[np.arange(300), np.arange(300)] += random.integers(0, 2000, 300)
    matrix = ConfusionMatrix(300, counts)
    accuracy = Accuracy(
        dataset="many",
        classes=classes,
        seen=[index % 7 > 0 for index in range(300)],
        source={"model": "m", "engine": "e"},
        images=1,
        broken={},
        semantic=matrix.metrics({"base": [index for index in range(300) if index % 7]}),
        panoptic=None,
        masks=None,
        confusions=largest_confusions(matrix, classes),
        best=[],
        worst=[],
    )
    plot_classes(accuracy, tmp_path / "bars.png")
    plot_confusion(accuracy, matrix, tmp_path / "confusion.png")
    for name in ("bars.png", "confusion.png"):
        with Image.open(tmp_path / name) as picture:
            assert 1000 < max(picture.size) < 3000


def test_largest_confusions() -> None:
    counts = np.zeros((4, 4), np.int64)
    counts[0, 0], counts[1, 0], counts[2, 1], counts[2, 3] = 10, 30, 5, 99
    found = largest_confusions(ConfusionMatrix(3, counts), NAMES[:3], 5)
    assert [(entry.true, entry.predicted, entry.pixels, entry.share) for entry in found] == [
        ("red disc", "green square", 30, 75.0),
        ("green square", "grass", 5, 100.0),
    ]
