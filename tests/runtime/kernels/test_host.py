"""The host extension against the NumPy specification, on random cases and any number of threads; and bad arguments."""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.kernels.cases import (
    BOTH,
    CASES,
    IMAGE_MEAN,
    IMAGE_STD,
    Case,
    cropping,
    kernels,
    random_image,
    random_masks,
    random_probabilities,
    worst,
)
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.kernels.geometry import expand_boxes, padded_size
from vocabseg.runtime.masks import Masks

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
HOST, REFERENCE = load_kernels("host"), load_kernels("reference")


def regions_of(masks: Masks, ratio: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    boxes, areas = HOST.region_boxes(masks, 0.5)
    indices = np.flatnonzero(areas).astype(np.int32)
    return expand_boxes(boxes[indices], ratio, masks.image_size), indices


def test_default_is_the_host() -> None:
    assert load_kernels() is HOST
    assert HOST.__name__.endswith("kernels.host.face")
    with pytest.raises(EngineError, match="no kernels named 'gpu': choose one of host, reference"):
        load_kernels("gpu")


def test_missing_extension_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vocabseg.runtime.kernels.host.face", None)
    with pytest.raises(EngineError, match=r"'host' cannot be loaded .*reinstall vocabseg"):
        load_kernels()


def test_both_modules_have_the_same_functions() -> None:
    shared = "resize_normalize", "region_boxes", "region_bits", "crop_regions", "patch_masks"
    for name in (*shared, "compose", "class_scores", "resample_masks"):
        wanted = REFERENCE.__dict__[name].__code__
        found = HOST.__dict__[name].__code__
        assert found.co_varnames[: found.co_argcount] == wanted.co_varnames[: wanted.co_argcount], name


@every_case
def test_boxes_equal(case: Case) -> None:
    masks = random_masks(0, case)
    for threshold in (0.0, 0.3, 0.5, 0.9, 1.0):
        found = HOST.region_boxes(masks, threshold)
        wanted = REFERENCE.region_boxes(masks, threshold)
        np.testing.assert_array_equal(found[0], wanted[0], err_msg=f"boxes at {threshold}")
        np.testing.assert_array_equal(found[1], wanted[1], err_msg=f"areas at {threshold}")
        assert found[0].dtype == found[1].dtype == np.int32


def test_thresholds_at_the_ends() -> None:
    masks = Masks(np.array([[[-50.0]], [[0.0]], [[50.0]]], np.float32), (4, 4), (3, 2), (3, 2))
    for name in BOTH:
        assert kernels(name).region_boxes(masks, 0.0)[1].tolist() == [6, 6, 6]
        assert kernels(name).region_boxes(masks, 0.5)[1].tolist() == [0, 0, 6]  # strictly above
        assert kernels(name).region_boxes(masks, 1.0)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", BOTH)
def test_empty_mask_has_a_zero_box(name: str) -> None:
    logits = np.full((2, 4, 4), -3, np.float32)
    logits[1, 2, 1] = 9
    boxes, areas = kernels(name).region_boxes(Masks(logits, (4, 4), (4, 4), (4, 4)), 0.5)
    assert boxes.tolist() == [[0, 0, 0, 0], [1, 2, 2, 3]]
    assert areas.tolist() == [0, 1]


@every_case
@pytest.mark.parametrize("matting", [False, True])
def test_crops_equal(case: Case, matting: bool) -> None:
    masks, image = random_masks(1, case), random_image(1, case.image_size)
    boxes, indices = regions_of(masks, ratio=1.3)
    arguments = (image, masks, boxes, indices, cropping(24, matting=matting))
    found, wanted = HOST.crop_regions(*arguments), REFERENCE.crop_regions(*arguments)
    # The exponentials of matting differ by a few units in the last place; all else is the same arithmetic.
    worst("crops", found, wanted, 2e-6 if matting else 5e-7)
    assert found.shape == (len(boxes), 3, 24, 24)
    for grid in (1, 5, 24):  # 5 patches of 4 pixels leave 4 pixels out
        arguments = (masks, boxes, indices, cropping(24, matting=matting), grid)
        np.testing.assert_array_equal(HOST.patch_masks(*arguments), REFERENCE.patch_masks(*arguments))


@pytest.mark.parametrize("side", [1, 2, 24, 224])
def test_huge_and_tiny_boxes(side: int) -> None:
    case = Case(2, (64, 96), (256, 384), (250, 380), (1, 1), 1)
    masks, image = random_masks(2, case), random_image(2, case.image_size)
    boxes = np.array([[0, 0, 380, 250], [379, 249, 380, 250], [0, 0, 1, 250], [7, 9, 380, 10]], np.int32)
    indices = np.array([0, 1, 1, 0], np.int32)
    arguments = (image, masks, boxes, indices, cropping(side))
    worst("crops", HOST.crop_regions(*arguments), REFERENCE.crop_regions(*arguments), 5e-7)


@every_case
def test_mask_probabilities_equal(case: Case) -> None:
    masks = random_masks(3, case)
    found, expected = HOST.resample_masks(masks), REFERENCE.resample_masks(masks)
    worst("probabilities", found, expected, 3e-7)
    assert found.shape == (case.count, *case.output_size)
    (height, width), middle = case.output_size, case.output_size[1] // 2
    rows, columns = [height - 1, 0, height // 3], [middle, width - 1, 0, middle]
    np.testing.assert_array_equal(HOST.resample_masks_at(masks, rows, columns), expected[:, rows][:, :, columns])


@every_case
def test_scores_and_labels_equal(case: Case) -> None:
    arguments = (random_masks(4, case), random_probabilities(4, case))
    found, wanted = HOST.class_scores(*arguments), REFERENCE.class_scores(*arguments)
    worst("class scores", found, wanted, 2e-6)
    labels, scores = HOST.compose(*arguments)
    np.testing.assert_array_equal(scores, found.max(axis=0))
    np.testing.assert_array_equal(labels, found.argmax(axis=0))  # the very scores, so the first of equals too
    ordered = np.sort(wanted, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5 if case.classes > 1 else np.ones(case.output_size, bool)
    np.testing.assert_array_equal(labels[clear], REFERENCE.compose(*arguments)[0][clear])


@pytest.mark.parametrize("name", BOTH)
def test_the_first_of_equal_classes_wins(name: str) -> None:
    masks = Masks(np.zeros((2, 3, 3), np.float32), (3, 3), (3, 3), (5, 19))
    probabilities = np.array([[0.1, 0.4, 0.4, 0.1, 0.4], [0.1, 0.4, 0.4, 0.1, 0.4]], np.float32)
    labels, scores = kernels(name).compose(masks, probabilities)
    assert (labels == 1).all()
    worst("scores", scores, np.full((5, 19), 0.4), 1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_no_mask_gives_zeros(name: str) -> None:
    masks = Masks(np.empty((0, 4, 4), np.float32), (16, 16), (12, 15), (7, 9))
    arguments = (masks, np.empty((0, 3), np.float32))
    labels, scores = kernels(name).compose(*arguments)
    assert labels.shape == scores.shape == (7, 9)
    assert not labels.any()
    assert not scores.any()
    assert kernels(name).class_scores(*arguments).tolist() == np.zeros((3, 7, 9)).tolist()


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(23, (16, 24), (64, 96), (60, 95), (150, 131), 11)
    masks, image, probabilities = random_masks(5, case), random_image(5, (77, 121)), random_probabilities(5, case)
    resized = random_image(6, case.image_size)
    boxes, indices = regions_of(masks)
    crop = (boxes, indices, cropping(30, matting=True))
    calls: list[Callable[[int | None], object]] = [
        lambda n: HOST.resize_normalize(image, (60, 95), (64, 96), IMAGE_MEAN, IMAGE_STD, threads=n),
        lambda n: HOST.region_boxes(masks, 0.5, threads=n),
        lambda n: HOST.crop_regions(resized, masks, *crop, threads=n),
        lambda n: HOST.patch_masks(masks, boxes, indices, cropping(30), 6, threads=n),
        lambda n: HOST.compose(masks, probabilities, threads=n),
        lambda n: HOST.class_scores(masks, probabilities, threads=n),
        lambda n: HOST.resample_masks(masks, threads=n),
    ]
    for call in calls:
        wanted = call(1)
        for threads in (2, 5):
            np.testing.assert_equal(call(threads), wanted)
        monkeypatch.setenv("VOCABSEG_THREADS", "3")
        np.testing.assert_equal(call(None), wanted)


def test_calls_from_several_threads_at_once() -> None:
    case = CASES["enlarged"]
    arguments = (random_masks(7, case), random_probabilities(7, case))
    wanted = HOST.compose(*arguments)
    results: list[tuple[np.ndarray, np.ndarray]] = []
    callers = [threading.Thread(target=lambda: results.append(HOST.compose(*arguments))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    np.testing.assert_equal(results, [wanted] * 4)


sides = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_any_sizes_agree(h: int, w: int, out_h: int, out_w: int, mask_h: int, mask_w: int, seed: int) -> None:
    case = Case(3, (mask_h, mask_w), padded_size(h, w, 16), (h, w), (out_h, out_w), 5)
    masks, image, probabilities = random_masks(seed, case), random_image(seed, (h, w)), random_probabilities(seed, case)
    found = HOST.region_boxes(masks, 0.4)
    np.testing.assert_equal(found, REFERENCE.region_boxes(masks, 0.4))
    indices = np.flatnonzero(found[1]).astype(np.int32)
    crop = (found[0][indices], indices, cropping(9, 0.4))
    worst("crops", HOST.crop_regions(image, masks, *crop), REFERENCE.crop_regions(image, masks, *crop), 1e-6)
    np.testing.assert_array_equal(HOST.patch_masks(masks, *crop, 4), REFERENCE.patch_masks(masks, *crop, 4))
    found, wanted = HOST.compose(masks, probabilities), REFERENCE.compose(masks, probabilities)
    worst("scores", found[1], wanted[1], 2e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e4, 1e4, width=32), st.integers(1, 9), st.integers(1, 9))
def test_constant_masks_stay_constant(value: float, h: int, w: int) -> None:
    logits = np.full((1, h, w), value, np.float32)
    found = HOST.resample_masks(Masks(logits, (32, 32), (30, 31), (17, 40)))
    wanted = 1 / (1 + np.exp(-np.clip(np.float64(value), -700, 700)))
    worst("probabilities", found, np.full(found.shape, wanted), 3e-7)


GOOD = {
    "image": np.zeros((8, 9, 3), np.uint8),
    "logits": np.zeros((2, 4, 4), np.float32),
    "image_size": (8, 9),
    "boxes": np.array([[0, 0, 2, 2]], np.int32),
    "indices": np.array([1], np.int32),
    "mean": (1, 2, 3),
    "std": (1, 1, 1),
    "size": 5,
}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((8, 9, 3), np.float32)}, "image has type float32: give uint8 of shape"),
        ({"image": np.zeros((8, 9), np.uint8)}, r"image has shape \(8, 9\): give \(h, w, 3\)"),
        ({"image": np.zeros((0, 9, 3), np.uint8)}, r"image is \(0, 9\): height and width must be whole numbers"),
        ({"image": np.zeros((20, 9, 3), np.uint8)}, r"image is 20 x 9, but the masks' is \(8, 9\)"),
        ({"image_size": (20, 9)}, r"padded size \(16, 16\) is smaller than the image size \(20, 9\)"),
        ({"image": [[1]]}, "image must be a NumPy array, not list"),
        ({"logits": np.zeros((2, 4, 4))}, "mask_logits has type float64: give float32"),
        ({"logits": np.zeros((2, 0, 4), np.float32)}, "mask_logits is"),
        ({"boxes": np.zeros((1, 4), np.int64)}, "boxes has type int64: give int32"),
        ({"boxes": np.array([[3, 0, 3, 2]], np.int32)}, r"box \[3, 0, 3, 2\] is empty or leaves the image of 9 x 8"),
        ({"boxes": np.array([[0, 0, 10, 2]], np.int32)}, r"box \[0, 0, 10, 2\] is empty or leaves"),
        ({"boxes": np.array([[-1, 0, 1, 2]], np.int32)}, r"box \[-1, 0, 1, 2\] is empty or leaves"),
        ({"indices": np.array([2], np.int32)}, "indices range from 2 to 2, but there are 2 masks"),
        ({"indices": np.array([0, 1], np.int32)}, r"indices has shape \(2,\): give \(1,\)"),
        ({"std": (1, 0, 1)}, "std is"),
        ({"mean": (1, 2)}, r"mean has shape \(2,\): give one number for each of red, green and blue"),
        ({"size": 0}, "crop_size is 0"),
    ],
)
def test_bad_crop_arguments(name: str, change: dict[str, object], message: str) -> None:
    a = {**GOOD, **change}
    masks = Masks(a["logits"], (16, 16), a["image_size"], (8, 9))
    settings = Cropping(0.5, False, np.zeros(3), a["mean"], a["std"], a["size"])
    with pytest.raises(ValueError, match=message) as error:
        kernels(name).crop_regions(a["image"], masks, a["boxes"], a["indices"], settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BOTH)
def test_a_patch_holds_any_pixel_that_counts(name: str) -> None:
    """With matting a pixel counts unless its probability is 0 in float32: below a logit of -88.72."""
    logits = np.array([[[-100, -88.7, -100, -100], [-100, -100, -100, 3]]], np.float32)
    masks = Masks(logits, (2, 4), (2, 4), (2, 4))
    box, index = np.array([[0, 0, 4, 2]], np.int32), np.zeros(1, np.int32)
    found = [kernels(name).patch_masks(masks, box, index, cropping(4, matting=matting), 2) for matting in (False, True)]
    np.testing.assert_array_equal(found, [[[[0, 0], [0, 1]]], [[[1, 0], [0, 1]]]])
    for grid in (0, 2.5, 5):
        with pytest.raises(
            ValueError, match=rf"patch_grid is {grid}: give a whole number from 1 to the crop's side, 4"
        ):
            kernels(name).patch_masks(masks, box, index, cropping(4), grid)
    none = kernels(name).patch_masks(masks, box[:0], index[:0], cropping(4), 2)
    assert none.shape == (0, 2, 2)


@pytest.mark.parametrize("name", BOTH)
def test_bad_probabilities_and_sizes(name: str) -> None:
    masks = Masks(GOOD["logits"], (16, 16), (8, 9), (8, 9))
    for probabilities, message in (
        (np.zeros((3, 4), np.float32), r"class_probabilities has shape \(3, 4\): give \(2, classes\)"),
        (np.zeros((2, 0), np.float32), "has no class"),
        (np.zeros((2, 4)), "class_probabilities has type float64"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels(name).compose(masks, probabilities)
    for size in ((0, 4), (4, -1), (4,), (4, 2.5), (2**20, 2**20)):
        with pytest.raises(ValueError, match="output size"):
            kernels(name).resample_masks(replace(masks, output_size=size))


def test_strided_arrays_are_taken() -> None:
    case = CASES["enlarged"]
    masks, image = random_masks(8, case), random_image(8, case.image_size)
    arguments = (*regions_of(masks), cropping(12))
    wanted = HOST.crop_regions(image, masks, *arguments)
    strided = np.asfortranarray(image), case.masks(np.repeat(masks.logits, 2, axis=2)[:, :, ::2])
    np.testing.assert_array_equal(HOST.crop_regions(*strided, *arguments), wanted)
