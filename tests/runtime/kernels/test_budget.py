"""The region budget: who leads whom, compared with IoUs counted pixel by pixel."""

import numpy as np
import pytest

from tests.runtime.kernels.cases import BOTH, CASES, Case, kernels, random_masks
from vocabseg.runtime.kernels.budget import choose_leaders, mask_confidences
from vocabseg.runtime.kernels.reference import sigmoid
from vocabseg.runtime.masks import Masks

OFF = {"share_iou": None, "min_objectness": 0.0, "max_regions": None}


def near_duplicates(seed: int, count: int = 24, size: tuple[int, int] = (41, 70)) -> Masks:
    """Rectangles of which many are copies of one before with a side moved; some are empty."""
    generator = np.random.default_rng(seed)
    logits = np.full((count, *size), -4, np.float32)
    boxes: list[np.ndarray] = []
    for k in range(count):
        corner = generator.integers(0, [size[1] - 12, size[0] - 12])
        box = np.concatenate([corner, corner + generator.integers(-1, 30, 2)])
        if k % 3:
            box = boxes[generator.integers(len(boxes))] + generator.integers(-2, 3, 4)
        boxes.append(box)
        x1, y1, x2, y2 = np.maximum(box, 0)
        logits[k, y1:y2, x1:x2] = generator.uniform(0.1, 5)
    logits[7] = -4
    return Masks(logits, size, size, size)


def oracle(inside: np.ndarray, objectness: np.ndarray, share_iou, min_objectness, max_regions) -> list[int]:
    """The rule of `choose_leaders`, one mask after the other, on unpacked masks (N, h, w) bool."""
    leaders, chosen = [-1] * len(inside), []
    order = [k for k in sorted(range(len(inside)), key=lambda k: (-objectness[k], k)) if inside[k].any()]
    for place, k in enumerate(order):
        if place and objectness[k] < min_objectness:
            continue
        for other in chosen:
            both, either = (inside[k] & inside[other]).sum(), (inside[k] | inside[other]).sum()
            if share_iou is not None and both >= share_iou * either:
                leaders[k] = other
                break
        else:
            if max_regions is None or len(chosen) < max_regions:
                chosen.append(k)
                leaders[k] = k
    return leaders


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"share_iou": 0.5},
        {"share_iou": 0.8},
        {"share_iou": 1.0},
        {"min_objectness": 0.4},
        {"max_regions": 3},
        {"share_iou": 0.7, "min_objectness": 0.3, "max_regions": 5},
        {"min_objectness": 1.0},
    ],
)
def test_leaders_are_those_of_the_rule(seed: int, limits: dict) -> None:
    masks, limits = near_duplicates(seed), OFF | limits
    host = kernels("host")
    boxes, areas = host.region_boxes(masks, 0.5)
    # Of few values, so that some are equal.
    objectness = (np.random.default_rng(seed).integers(0, 9, len(masks)) / 8.125).astype(np.float32)
    found = choose_leaders(boxes, areas, objectness, host.region_bits(masks, 0.5), **limits)
    assert found.tolist() == oracle(masks.logits > 0, objectness, **limits)
    if seed == 0:
        assert areas[7] == 0
        assert (found == np.arange(len(found))).sum() < (found >= 0).sum() or limits["share_iou"] in (None, 1.0)


def test_an_iou_of_exactly_the_limit_shares() -> None:
    logits = np.full((2, 2, 40), -1, np.float32)
    logits[0, 0, 30:34] = logits[1, 0, 30:33] = 1
    masks = Masks(logits, (2, 40), (2, 40), (2, 40))
    boxes, areas = kernels("host").region_boxes(masks, 0.5)
    bits = kernels("host").region_bits(masks, 0.5)
    for limit, wanted in ((0.75, [1, 1]), (0.7500001, [0, 1])):
        limits = OFF | {"share_iou": limit}
        assert choose_leaders(boxes, areas, np.array([0.1, 0.2], np.float32), bits, **limits).tolist() == wanted


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bits_are_the_pixels_that_boxes_are_found_of(case: Case) -> None:
    masks = random_masks(3, case)
    for threshold in (0.0, 0.4, 1.0):
        bits = [kernels(name).region_bits(masks, threshold) for name in BOTH]
        np.testing.assert_array_equal(*bits)
        assert bits[0].dtype == bits[1].dtype == np.uint32
        inside = np.unpackbits(bits[1].view(np.uint8), axis=-1, bitorder="little")
        np.testing.assert_array_equal(inside.sum((1, 2)), kernels("host").region_boxes(masks, threshold)[1])
        assert not inside[:, :, masks.image_size[1] :].any()


def test_confidence_is_the_mean_probability_inside() -> None:
    logits = np.array([[[-1, 2], [0.5, 3]], [[-1, -2], [-3, -4]], [[1, 1], [1, 1]]], np.float32)
    found = mask_confidences(logits, 0.5)
    np.testing.assert_allclose(found, [sigmoid(np.array([2, 0.5, 3])).mean(), 0, 1 / (1 + np.exp(-1))], rtol=1e-6)
    assert mask_confidences(logits, 0.9)[0] == pytest.approx(1 / (1 + np.exp(-3)))
