"""Mask average precision: figures that can be worked out by hand."""

import numpy as np
import pytest

from vocabseg.benchmarks.accuracy.mask_ap import Detection, mask_average_precision
from vocabseg.benchmarks.datasets.dataset import ObjectTruth
from vocabseg.runtime.result.panoptic import rle_encode


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((120, 160), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def truth_of(class_index: int, mask: np.ndarray, crowd: bool = False) -> ObjectTruth:
    return ObjectTruth(class_index, rle_encode(mask), float(mask.sum()), crowd)


def found(class_index: int, score: float, mask: np.ndarray) -> Detection:
    return Detection(class_index, score, rle_encode(mask))


def test_perfect_detections() -> None:
    masks = [square(5, 5, 20), square(40, 60, 50)]
    truth = {"a": [truth_of(0, masks[0]), truth_of(2, masks[1])], "b": []}
    detections = {"a": [found(0, 0.9, masks[0]), found(2, 0.3, masks[1])], "elsewhere": [found(0, 1, masks[0])]}
    metrics = mask_average_precision(truth, detections, 3)
    assert metrics.ap == pytest.approx(100)
    assert metrics.recall == pytest.approx(100)
    assert metrics.ap_small == pytest.approx(100)
    assert metrics.ap_large is None
    assert metrics.per_class == [pytest.approx(100), None, pytest.approx(100)]


def test_a_shifted_mask_counts_up_to_its_iou() -> None:
    # 40 x 40 shifted by 8: IoU = 32 / 48 = 0.667, so it is right at thresholds 0.50, 0.55, 0.60 and 0.65 of ten.
    truth = {"a": [truth_of(1, square(10, 10, 40))]}
    metrics = mask_average_precision(truth, {"a": [found(1, 0.5, square(10, 18, 40))]}, 2)
    assert metrics.ap == pytest.approx(40)
    assert (metrics.ap50, metrics.ap75) == (pytest.approx(100), 0)
    assert metrics.per_class == [None, pytest.approx(40)]


def test_a_better_scored_false_object_halves_the_precision() -> None:
    truth = {"a": [truth_of(0, square(10, 10, 40))]}
    detections = {"a": [found(0, 0.9, square(70, 100, 30)), found(0, 0.8, square(10, 10, 40))]}
    assert mask_average_precision(truth, detections, 1).ap == pytest.approx(50)


def test_detections_in_a_crowd_are_forgiven() -> None:
    truth = {"a": [truth_of(0, square(10, 10, 20)), truth_of(0, square(60, 60, 50), crowd=True)]}
    detections = {"a": [found(0, 0.9, square(70, 70, 20)), found(0, 0.8, square(10, 10, 20))]}
    assert mask_average_precision(truth, detections, 1).ap == pytest.approx(100)


def test_nothing_to_find_and_nothing_found() -> None:
    assert mask_average_precision({"a": []}, {}, 2).per_class == [None, None]
    metrics = mask_average_precision({"a": [truth_of(0, square(1, 1, 9))]}, {}, 1)
    assert (metrics.ap, metrics.recall) == (0, 0)
