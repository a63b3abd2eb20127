"""Panoptic segments equal the published rule's, instances follow theirs, and encodings round-trip."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.golden import load_golden
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.result.panoptic import (
    ResampledMasks,
    coco_box,
    instances,
    panoptic_segments,
    rle_decode,
    rle_encode,
)


def sigmoid(x):
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


class StandInKernels:
    """Kernels for masks that already have the output size; counts what is asked for at a time."""

    def __init__(self):
        self.asked = []

    def resample_masks(self, masks):
        assert masks.logits.shape[1:] == masks.output_size
        self.asked.append(len(masks))
        return sigmoid(masks.logits)


def test_golden():
    arrays_, meta = load_golden("e_panoptic")
    probabilities = softmax(arrays_["query_logits"])
    logits = arrays_["mask_logits"]
    size = logits.shape[1:]
    assert len(meta["cases"]) == 6
    for number, case in enumerate(meta["cases"]):
        lazy = ResampledMasks(Masks(logits, size, size, size), StandInKernels())
        for masks in (sigmoid(logits), lazy):
            segmentation, segments = panoptic_segments(
                probabilities, masks, meta["things"], case["object_mask_threshold"], case["overlap_threshold"]
            )
            assert segmentation.dtype == np.int32
            np.testing.assert_array_equal(segmentation, arrays_[f"seg_{number}"])
            published = [{key: s[key] for key in ("id", "isthing", "category_id")} for s in segments]
            assert published == case["segments"]
            assert [s["area"] for s in segments] == [np.count_nonzero(segmentation == s["id"]) for s in segments]


def test_only_the_masks_that_take_part_are_resampled_and_in_chunks(monkeypatch):
    monkeypatch.setattr("vocabseg.runtime.result.panoptic.CHUNK_BYTES", 3 * 4 * 30)
    kernels = StandInKernels()
    logits = np.random.default_rng(0).normal(size=(20, 5, 6)).astype(np.float32)
    probabilities = np.zeros((20, 3), np.float32)
    probabilities[:8, 1] = 0.9
    probabilities[8:, 2] = 0.9
    panoptic_segments(probabilities, ResampledMasks(Masks(logits, (5, 6), (5, 6), (5, 6)), kernels), [1])
    assert kernels.asked == [3, 3, 2]


def test_things_stay_apart_and_stuff_merges():
    masks = np.zeros((3, 4, 6), np.float32)
    masks[0, :, :2] = masks[1, :, 2:4] = masks[2, :, 4:] = 1
    probabilities = np.array([[0.9, 0, 0.1], [0.95, 0, 0.05], [0, 0.85, 0.15]], np.float32)
    segmentation, segments = panoptic_segments(probabilities, masks, things=[0])
    assert segmentation[0].tolist() == [1, 1, 2, 2, 3, 3]
    assert [s["isthing"] for s in segments] == [True, True, False]
    segmentation, segments = panoptic_segments(probabilities, masks, things=[])
    assert segmentation[0].tolist() == [1, 1, 1, 1, 2, 2]
    assert segments[0] == {
        "id": 1,
        "isthing": False,
        "category_id": 0,
        "score": pytest.approx(0.95),
        "area": 16,
    }


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_takes_part(count):
    segmentation, segments = panoptic_segments(np.eye(count, 4)[:, ::-1], np.ones((count, 3, 2)), [0], 1.0)
    assert segmentation.tolist() == [[0, 0]] * 3
    assert segments == []
    assert instances(np.zeros((count, 2)), np.zeros((count, 3, 2))) == []


def test_instances():
    masks = np.full((3, 6, 8), 0.1, np.float32)
    masks[0, 1:4, 2:7] = 0.8
    masks[1, 5, 0] = 0.6
    probabilities = np.array([[0.5, 0.4], [0.9, 0.05], [1.0, 1.0]], np.float32)
    found = instances(probabilities, masks)
    assert [(i.class_index, i.box) for i in found] == [
        (0, (0, 5, 1, 6)),
        (0, (2, 1, 7, 4)),
        (1, (2, 1, 7, 4)),
        (1, (0, 5, 1, 6)),
    ]
    assert [i.score for i in found] == pytest.approx([0.54, 0.4, 0.32, 0.03], abs=1e-6)
    np.testing.assert_array_equal(found[1].mask, masks[0] > 0.5)
    # the two pairs of the empty mask, the most probable ones, take their places among the top four
    assert [(i.class_index, i.box[0]) for i in instances(probabilities, masks, top_k=4)] == [(0, 0), (0, 2)]
    assert [i.class_index for i in instances(probabilities, masks, things=[1])] == [1, 1]


def test_an_object_is_found_once():
    masks = np.zeros((4, 10, 10), np.float32)
    masks[0, 2:8, 2:8] = 0.9
    masks[1, 2:8, 2:7] = 0.9  # 30 of 36 pixels
    masks[2, 2:8, 5:10] = 0.9  # 18 of 48 pixels
    masks[3, 0, 0] = 0.9
    probabilities = np.array([[0.9, 0.2], [0.8, 0.1], [0.7, 0.1], [0.6, 0.1]], np.float32)

    def found(threshold):
        pairs = instances(probabilities, masks, overlap_threshold=threshold)
        return [(one.class_index, one.box) for one in pairs if one.score > 0.15]

    first, almost, other, corner = (2, 2, 8, 8), (2, 2, 7, 8), (5, 2, 10, 8), (0, 0, 1, 1)
    assert found(0.5) == [(0, first), (0, other), (0, corner), (1, first)]
    assert found(30 / 36 - 1e-9) == [(0, first), (0, other), (0, corner), (1, first)]
    assert found(30 / 36) == found(None) == [(0, first), (0, almost), (0, other), (0, corner), (1, first)]
    assert found(18 / 48 - 1e-9) == [(0, first), (0, corner), (1, first)]


def brute_force_instances(probabilities, masks, things, top_k):
    pairs = [(-p, q * probabilities.shape[1] + c) for q, row in enumerate(probabilities) for c, p in enumerate(row)]
    result = []
    for _, pair in sorted(pairs)[:top_k]:
        query, category = divmod(pair, probabilities.shape[1])
        inside = masks[query] > 0.5
        if category in things and inside.any():
            quality = masks[query][inside].mean(dtype=np.float64)
            result.append((category, float(probabilities[query, category]) * float(quality), inside))
    return sorted(result, key=lambda r: -r[1])


def test_instances_against_brute_force():
    rng = np.random.default_rng(3)
    masks = rng.uniform(0, 1, (12, 9, 7)).astype(np.float32) * rng.integers(0, 2, (12, 1, 1)).astype(np.float32)
    probabilities = rng.dirichlet(np.ones(5), 12).astype(np.float32)
    expected = brute_force_instances(probabilities, masks, {0, 2, 3}, 30)
    found = instances(probabilities, masks, [0, 2, 3], 30)
    assert len(found) == len(expected) > 5
    for instance, (category, score, mask) in zip(found, expected, strict=True):
        assert instance.class_index == category
        assert instance.score == pytest.approx(score, rel=1e-6)
        np.testing.assert_array_equal(instance.mask, mask)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(1, 4), st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_panoptic_properties(count, classes, seed, object_threshold, overlap):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes + 1, 0.3), count).astype(np.float32)
    masks = rng.uniform(0, 1, (count, 5, 4)).astype(np.float32)
    things = [c for c in range(classes) if rng.random() < 0.5]
    segmentation, segments = panoptic_segments(probabilities, masks, things, object_threshold, overlap)
    assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
    areas = np.bincount(segmentation.ravel(), minlength=len(segments) + 1)
    assert [s["area"] for s in segments] == areas[1:].tolist()
    stuff = [s["category_id"] for s in segments if not s["isthing"]]
    assert len(set(stuff)) == len(stuff)
    assert all(s["isthing"] == (s["category_id"] in things) for s in segments)
    assert all(s["score"] > object_threshold for s in segments)


def test_mismatched_input_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and masks \(3, 4, 4\) do not match"):
        panoptic_segments(np.zeros((2, 3)), np.zeros((3, 4, 4)), [])


@settings(max_examples=60, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_run_lengths_round_trip(mask):
    encoded = rle_encode(mask)
    assert encoded["size"] == list(mask.shape)
    np.testing.assert_array_equal(rle_decode(encoded), mask)
    x, y, width, height = coco_box(mask)
    outside = mask.copy()
    outside[y : y + height, x : x + width] = False
    assert not outside.any()
    assert width * height == 0 or (mask[y].any() and mask[:, x + width - 1].any())


def test_run_lengths_are_cocos():
    # the example of the COCO documentation: M = [0 0 1 1 1 0 1], run lengths 2 3 1 1
    from pycocotools import mask as coco

    mask = np.array([0, 0, 1, 1, 1, 0, 1], bool)[:, None]
    expected = coco.frPyObjects({"size": [7, 1], "counts": [2, 3, 1, 1]}, 7, 1)
    assert rle_encode(mask)["counts"] == expected["counts"].decode()
    # columns come first
    wide = np.array([[1, 0, 0], [1, 0, 1]], bool)
    assert rle_encode(wide) == rle_encode(wide.ravel(order="F")[:, None]) | {"size": [2, 3]}
