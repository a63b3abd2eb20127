"""The CUDA kernels against the NumPy specification: on a GPU, and compiled for the CPU where there is none."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cuda_emulation.devices import DEVICES, Bench, opened
from tests.runtime.kernels.cases import (
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
from tests.runtime.kernels.device_module import CudaModule
from vocabseg.runtime.kernels.geometry import expand_boxes, padded_size
from vocabseg.runtime.masks import Masks

REFERENCE, HOST = kernels("reference"), kernels("host")
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(scope="module", params=DEVICES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with opened(request.param, seed=7) as found:
        yield found


def regions_of(masks: Masks, ratio: float = 1.3) -> tuple[np.ndarray, np.ndarray]:
    boxes, areas = HOST.region_boxes(masks, 0.5)
    indices = np.flatnonzero(areas).astype(np.int32)
    return expand_boxes(boxes[indices], ratio, masks.image_size), indices


def half_ulps(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How many steps of half precision two arrays differ by; steps below 2^-14 count as float32's rounding of 1."""
    step = np.maximum(np.spacing(np.abs(wanted).astype(np.float16)).astype(np.float64), 2e-6)
    return np.abs(found.astype(np.float64) - wanted) / step


@every_case
def test_resize_is_pillow_s(bench: Bench, case: Case) -> None:
    image = random_image(1, (37, 51))
    arguments = (image, case.image_size, case.padded_size, IMAGE_MEAN, IMAGE_STD)
    wanted = HOST.resize_normalize(*arguments)
    np.testing.assert_equal(CudaModule(bench).resize_normalize(*arguments), wanted)
    network_input, resized = CudaModule(bench, np.float16).resize_normalize(*arguments)
    np.testing.assert_array_equal(resized, wanted[1])
    np.testing.assert_array_equal(network_input, wanted[0].astype(np.float16))


def test_a_resize_of_thousands_of_rows(bench: Bench) -> None:
    image = random_image(2, (900, 5))
    arguments = (image, (7, 40), (32, 64), IMAGE_MEAN, IMAGE_STD)
    np.testing.assert_equal(CudaModule(bench).resize_normalize(*arguments), HOST.resize_normalize(*arguments))


@every_case
def test_boxes_areas_and_bits(bench: Bench, case: Case) -> None:
    for logits, thresholds in ((np.float32, (0.0, 0.3, 0.5, 0.9, 1.0)), (np.float16, (0.5,))):
        masks = random_masks(0, case, logits)
        module = CudaModule(bench, logits=logits)
        for threshold in thresholds:
            boxes, areas, bits = module.boxes_and_bits(masks, threshold)
            wanted = REFERENCE.region_boxes(masks, threshold)
            np.testing.assert_equal((boxes, areas), wanted, err_msg=f"at {threshold}")
            for mask, found in zip(masks.logits, bits, strict=True):
                logit = REFERENCE.upsample(mask, case.padded_size, case.image_size)
                np.testing.assert_array_equal(found, logit > REFERENCE.threshold_logit(threshold))


def test_boxes_wider_than_a_block(bench: Bench) -> None:
    logits = np.full((2, 3, 80), -5, np.float32)
    logits[0, 1, 66], logits[1, 2, 79], logits[1, 0, 0] = 9, 9, 9
    masks = Masks(logits, (40, 2400), (39, 2390), (39, 2390))
    boxes, areas, bits = CudaModule(bench).boxes_and_bits(masks, 0.5)
    np.testing.assert_equal((boxes, areas), REFERENCE.region_boxes(masks, 0.5))
    np.testing.assert_array_equal(bits.sum(axis=(1, 2)), areas)


@pytest.mark.parametrize("logits", [np.float32, np.float16])
@pytest.mark.parametrize("size", [(37, 53), (74, 106)], ids=["as large as the image", "reduced"])
def test_every_logit_is_looked_at(bench: Bench, size: tuple[int, int], logits: type) -> None:
    places = np.random.default_rng(3).permutation(size[0] * size[1])[:40]
    values = np.full((40, size[0] * size[1]), -20, np.float32)
    values[np.arange(40), places] = 100  # no other logit of the mask is near the threshold
    masks = Masks(values.reshape(40, *size), (37, 53), (37, 53), (37, 53))
    boxes, areas, bits = CudaModule(bench, logits=logits).boxes_and_bits(masks, 0.5)
    np.testing.assert_equal((boxes, areas), REFERENCE.region_boxes(masks, 0.5))
    np.testing.assert_array_equal(bits.sum(axis=(1, 2)), areas)
    assert areas.all()


@pytest.mark.parametrize("ratio", [1.0, 1.37, 0.2])
@pytest.mark.parametrize("count", [0, 1, 100, 300])
def test_selected_regions(bench: Bench, count: int, ratio: float) -> None:
    generator = np.random.default_rng(count)
    corners = np.sort(generator.integers(0, 60, (count, 2, 2)), axis=1) + np.array([[0, 0], [1, 1]])
    boxes = np.stack([corners[:, 0, 0], corners[:, 0, 1], corners[:, 1, 0], corners[:, 1, 1]], axis=1).astype(np.int32)
    areas = generator.integers(0, 3, count).astype(np.int32)
    boxes[areas == 0] = 0
    order, crop_boxes = bench.up(np.full(count, -7, np.int32)), bench.up(np.full((count, 4), -7, np.int32))
    found = bench.new((1,), np.int32)
    bench.kernels.select_regions(
        bench.up(boxes), bench.up(areas), ratio, (61, 58), order, crop_boxes, found, bench.stream
    )
    indices = np.flatnonzero(areas)
    assert bench.down(found).tolist() == [len(indices)]
    np.testing.assert_array_equal(bench.down(order)[: len(indices)], indices)
    np.testing.assert_array_equal(bench.down(crop_boxes)[: len(indices)], expand_boxes(boxes[indices], ratio, (61, 58)))
    assert (bench.down(order)[len(indices) :] == -7).all()


@every_case
@pytest.mark.parametrize("matting", [False, True])
@pytest.mark.parametrize("with_bits", [False, True])
def test_crops(bench: Bench, case: Case, matting: bool, with_bits: bool) -> None:
    masks, image = random_masks(1, case), random_image(1, case.image_size)
    fill = np.array([10, 200, 77.5], np.float32)
    arguments = (image, masks, *regions_of(masks), cropping(24, matting=matting, fill=fill))
    wanted = REFERENCE.crop_regions(*arguments)
    worst("crops", CudaModule(bench, with_bits=with_bits).crop_regions(*arguments), wanted, 3e-6)
    halves = CudaModule(bench, np.float16, with_bits=with_bits).crop_regions(*arguments)
    assert half_ulps(halves, wanted).max(initial=0) <= 2
    for grid, dtype in ((5, np.float32), (12, np.float16)):
        patches = CudaModule(bench, dtype, with_bits=with_bits).patch_masks(*arguments[1:], grid)
        np.testing.assert_array_equal(patches, REFERENCE.patch_masks(*arguments[1:], grid))


@pytest.mark.parametrize("side", [1, 2, 9, 224, 300])
def test_crops_of_huge_and_tiny_boxes(bench: Bench, side: int) -> None:
    case = Case(2, (32, 48), (128, 192), (125, 190), (1, 1), 1)
    masks, image = random_masks(2, case), random_image(2, case.image_size)
    boxes = np.array([[0, 0, 190, 125], [189, 124, 190, 125], [0, 0, 1, 125], [7, 9, 190, 10]], np.int32)
    indices = np.array([0, 1, 1, 0], np.int32)
    arguments = (image, masks, boxes, indices, cropping(side))
    worst("crops", CudaModule(bench).crop_regions(*arguments), REFERENCE.crop_regions(*arguments), 3e-6)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8])
def test_crops_of_narrow_images(bench: Bench, width: int) -> None:
    masks = Masks(np.full((1, 3, 3), 5, np.float32), (5, width), (5, width), (5, width))
    image, box = random_image(width, (5, width)), np.array([[0, 0, width, 5]], np.int32)
    arguments = (image, masks, box, np.zeros(1, np.int32), cropping(9))
    worst("crops", CudaModule(bench).crop_regions(*arguments), REFERENCE.crop_regions(*arguments), 1e-4)


@every_case
def test_labels_and_scores(bench: Bench, case: Case) -> None:
    probabilities = random_probabilities(4, case)
    for logits in (np.float32, np.float16):
        check_compose(CudaModule(bench, logits=logits), random_masks(4, case, logits), probabilities)


def check_compose(module: CudaModule, masks: Masks, probabilities: np.ndarray) -> None:
    """Scores are float32's, and labels equal wherever two classes differ by more than rounding can."""
    labels, scores = module.compose(masks, probabilities)
    wanted = REFERENCE.class_scores(masks, probabilities)
    # Tensor cores cut off what they add up, three times for each 16 masks: 2.5e-6 for 250 masks on an H200.
    limit = 2e-6 + 3 * len(masks) / 16 * 2**-25
    worst("scores", scores, wanted.max(axis=0), limit * max(1.0, float(wanted.max(initial=0))))
    assert labels.min(initial=0) >= 0
    assert labels.max(initial=0) < len(wanted)
    own = np.take_along_axis(wanted, labels[None].astype(np.int64), axis=0)[0]
    worst("score of the label", own, wanted.max(axis=0), 4e-6 * max(1.0, float(wanted.max(initial=0))))
    if len(wanted) > 1:
        ordered = np.sort(wanted, axis=0)
        clear = ordered[-1] - ordered[-2] > 1e-5
        np.testing.assert_array_equal(labels[clear], wanted.argmax(axis=0)[clear])


@pytest.mark.parametrize(
    ("masks", "classes", "output"),
    [
        (100, 171, (9, 24)),
        (112, 16, (8, 8)),
        (113, 17, (9, 9)),
        (250, 70, (5, 19)),
        (1000, 5, (3, 8)),
        (16, 10000, (8, 9)),
    ],
)
def test_numbers_of_masks_and_classes(bench: Bench, masks: int, classes: int, output: tuple[int, int]) -> None:
    case = Case(masks, (6, 9), (24, 36), (23, 35), output, classes)
    probabilities = np.random.default_rng(1).dirichlet(np.full(classes, 0.1), masks).astype(np.float32)
    check_compose(CudaModule(bench), random_masks(3, case), probabilities)


@pytest.mark.parametrize("count", [5, 130])
@pytest.mark.parametrize("classes", [35, 37, 40, 48])  # equal ones in one lane, in neighbours, and in other warps
def test_the_first_of_equal_classes_wins(bench: Bench, count: int, classes: int) -> None:
    case = Case(count, (6, 9), (24, 36), (23, 35), (11, 17), classes)
    masks = random_masks(6, case)
    first = np.random.default_rng(2).dirichlet(np.full(classes, 0.3), count).astype(np.float32)
    twice = np.concatenate([first, first, first[:, :13]], axis=1)
    labels, _ = CudaModule(bench).compose(masks, twice)
    assert labels.max() < classes
    assert len(np.unique(labels)) > 1
    zeros = np.zeros_like(twice)
    labels, scores = CudaModule(bench).compose(masks, zeros)
    assert not labels.any()
    assert not scores.any()


def test_small_and_near_values_survive_the_split(bench: Bench) -> None:
    """Classes that differ by 1e-5 of their probability, faint masks, and probabilities below half precision's."""
    case = Case(20, (5, 7), (20, 28), (19, 27), (13, 18), 30)
    generator = np.random.default_rng(5)
    masks = case.masks(generator.normal(-8, 4, (20, 5, 7)).astype(np.float32))
    base = generator.dirichlet(np.ones(10), 20)
    for probabilities in (
        np.concatenate([base, base * (1 - 1e-5), base * (1 + 2e-5)], axis=1),
        base * 1e-6,
        base.clip(0, 1e-4) * 1e-4 + np.eye(20, 10) * 1e-7,
    ):
        arguments = (masks, probabilities.astype(np.float32))
        labels, scores = CudaModule(bench).compose(*arguments)
        wanted = REFERENCE.class_scores(*arguments).astype(np.float64)
        limit = 3e-6 * float(wanted.max()) + 3e-11
        worst("scores", scores, wanted.max(axis=0), limit)
        own = np.take_along_axis(wanted, labels[None].astype(np.int64), axis=0)[0]
        worst("score of the label", own, wanted.max(axis=0), limit)


sides = st.integers(1, 70)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=25, deadline=None)
@given(sides, sides, sides, sides, st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_any_sizes_agree(
    device: str, h: int, w: int, out_h: int, out_w: int, mask_h: int, mask_w: int, seed: int
) -> None:
    case = Case(3, (mask_h, mask_w), padded_size(h, w, 16), (h, w), (out_h, out_w), 5)
    masks, image, probabilities = random_masks(seed, case), random_image(seed, (h, w)), random_probabilities(seed, case)
    with opened(device, seed) as bench:
        module = CudaModule(bench, with_bits=seed % 2 == 0)
        arguments = (image, (out_h, out_w), padded_size(out_h, out_w, 16), IMAGE_MEAN, IMAGE_STD)
        np.testing.assert_equal(module.resize_normalize(*arguments), HOST.resize_normalize(*arguments))
        found = module.region_boxes(masks, 0.4)
        np.testing.assert_equal(found, HOST.region_boxes(masks, 0.4))
        indices = np.flatnonzero(found[1]).astype(np.int32)
        crop = (found[0][indices], indices, cropping(9, 0.4))
        worst("crops", module.crop_regions(image, masks, *crop), HOST.crop_regions(image, masks, *crop), 3e-6)
        np.testing.assert_array_equal(module.patch_masks(masks, *crop, 4), HOST.patch_masks(masks, *crop, 4))
        check_compose(module, masks, probabilities)
