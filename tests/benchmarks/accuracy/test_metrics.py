"""Semantic metrics: the published evaluator's figures, and that counting in parts changes nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.golden import load_golden
from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix


def golden_cases() -> list[tuple[np.ndarray, dict]]:
    arrays_by_name, meta = load_golden("e_eval")
    return [(arrays_by_name[f"conf_{index}"], case) for index, case in enumerate(meta["cases"])]


def test_published_figures() -> None:
    for counts, case in golden_cases():
        classes = len(counts) - 1
        metrics = ConfusionMatrix(classes, counts).metrics(case["sets"])
        found = {"mIoU": metrics.miou, "fwIoU": metrics.fwiou, "mACC": metrics.macc, "pACC": metrics.pacc}
        found |= {f"IoU-c{index}": value for index, value in enumerate(metrics.iou)}
        found |= {f"ACC-c{index}": value for index, value in enumerate(metrics.accuracy)}
        for name, part in metrics.sets.items():
            found |= {f"mIoU-{name}": part.miou, f"pAcc-{name}": part.pacc, f"hIoU-{name}": part.hiou}
            found |= {f"mIoU-un{name}": part.complement_miou, f"pAcc-un{name}": part.complement_pacc}
        assert found.keys() == case["result"].keys()
        for name, expected in case["result"].items():
            assert found[name] == (None if expected is None else pytest.approx(expected, abs=1e-9)), name


def test_published_counting() -> None:
    golden, _ = load_golden("e_eval")
    matrix = ConfusionMatrix(5)
    matrix.update(golden["sem"].argmax(0), golden["gt"], 255)
    np.testing.assert_array_equal(matrix.counts, golden["process_general"])


LABELS = st.integers(2, 7).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        arrays.arrays(np.int32, (6, 5, 4), elements=st.integers(-1, classes - 1)),
        arrays.arrays(np.uint8, (6, 5, 4), elements=st.one_of(st.integers(0, classes - 1), st.just(255))),
    )
)


@given(LABELS, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_parts_add_up(case: tuple[int, np.ndarray, np.ndarray], cut: int) -> None:
    classes, labels, truth = case
    whole = ConfusionMatrix(classes)
    whole.update(labels.reshape(-1, 4), truth.reshape(-1, 4), 255)
    parts = [ConfusionMatrix(classes), ConfusionMatrix(classes)]
    for index, (one, other) in enumerate(zip(labels, truth, strict=True)):
        parts[index >= cut].update(one, other, 255)
    again = ConfusionMatrix.from_json(json.loads(json.dumps(parts[1].to_json())))
    np.testing.assert_array_equal(parts[0].counts + again.counts, whole.counts)
    assert whole.counts.sum() == labels.size
    metrics = whole.metrics({"some": [0]})
    for index in range(classes):
        there = truth == index
        assert metrics.pixels[index] == there.sum()
        if there.any():
            union = (there | ((labels == index) & (truth != 255))).sum()
            assert metrics.iou[index] == pytest.approx(100 * (there & (labels == index)).sum() / union)
        else:
            assert metrics.iou[index] is None


def test_pixels_without_a_label_are_errors() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([[0, -1, 1, 1]]), np.array([[0, 0, 1, 255]], np.uint8), 255)
    metrics = matrix.metrics()
    assert metrics.iou == [50.0, 100.0]
    assert metrics.pacc == pytest.approx(200 / 3)


def test_a_perfect_and_an_empty_matrix() -> None:
    matrix = ConfusionMatrix(3)
    assert matrix.metrics({"base": [0]}).miou is None
    assert matrix.mean_iou() is None
    matrix.update(np.array([[0, 2]]), np.array([[0, 2]], np.uint8), 255)
    metrics = matrix.metrics({"base": [0], "all": [0, 1, 2]})
    assert (metrics.miou, metrics.fwiou, metrics.macc, metrics.pacc) == (100, 100, 100, 100)
    assert metrics.sets["base"].hiou == 100
    assert metrics.sets["all"].hiou is None


@pytest.mark.parametrize(
    ("labels", "truth", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\).*\(3, 2\)"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "labels hold values from 3 to 3, for 3 classes"),
        (np.zeros((2, 2), int), np.full((2, 2), 7), "truth hold values"),
        (np.full((2, 2), -2), np.zeros((2, 2), int), "from -2"),
    ],
)
def test_what_cannot_be_counted(labels: np.ndarray, truth: np.ndarray, message: str) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        matrix.update(labels, truth, 255)
    assert matrix.counts.sum() == 0


def test_wide_label_maps() -> None:
    matrix = ConfusionMatrix(847)
    truth = np.array([[846, 65535, 255]], np.uint16)
    matrix.update(np.array([[846, 3, 255]]), truth, 65535)
    assert matrix.counts[846, 846] == 1
    assert matrix.counts[3, 847] == 1
    assert matrix.counts[255, 255] == 1
