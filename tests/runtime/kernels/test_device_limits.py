"""The CUDA kernels at the limits of their arithmetic: far and equal logits, close classes, more masks than threads."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.cuda_emulation.devices import DEVICES, Bench, opened
from tests.runtime.kernels.cases import cropping, kernels, random_image, worst
from tests.runtime.kernels.device_module import CudaModule
from vocabseg.runtime.masks import Masks

REFERENCE = kernels("reference")


@pytest.fixture(params=DEVICES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with opened(request.param, seed=3) as found:
        yield found


@pytest.mark.parametrize("far", [40, 50, 60, 80, 120, 400, 60000])
def test_labels_of_logits_far_from_zero(bench: Bench, far: float) -> None:
    """Outlines between two masks that are certain lie where the interpolated logits cross."""
    logits = np.full((2, 6, 6), -far, np.float32)
    logits[0, :3], logits[1, 3:] = far, far
    masks = Masks(logits, (24, 24), (24, 24), (24, 24))
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    labels, scores = CudaModule(bench).compose(masks, probabilities)
    wanted = REFERENCE.class_scores(masks, probabilities)
    np.testing.assert_array_equal(labels, wanted.argmax(axis=0))
    worst("scores", scores, wanted.max(axis=0), 4e-6)


def test_scores_of_mixed_far_logits(bench: Bench) -> None:
    generator = np.random.default_rng(0)
    logits = generator.choice(np.array([-60000, -400, -90, -50, 50, 90, 400, 60000], np.float32), (20, 5, 6))
    probabilities = generator.dirichlet(np.ones(9), 20).astype(np.float32)
    masks = Masks(logits, (20, 24), (19, 23), (13, 11))
    _, scores = CudaModule(bench).compose(masks, probabilities)
    worst("scores", scores, REFERENCE.class_scores(masks, probabilities).max(axis=0), 4e-6)


@pytest.mark.parametrize("logit", [0.3, 1.7, -2.2])
def test_a_class_that_only_low_halves_tell_apart_wins(bench: Bench, logit: float) -> None:
    """Class 32 rounds down to class 0 in half precision; all pixels are alike, so none saves its group."""
    masks = Masks(np.full((16, 4, 4), logit, np.float32), (16, 16), (16, 16), (8, 8))
    probabilities = np.full((16, 48), 1 / 256, np.float32)
    probabilities[:, 0] = 1 / 16
    probabilities[:, 32] = np.float32(1 / 16) * np.float32(1 + 0.45 / 1024)
    labels, scores = CudaModule(bench).compose(masks, probabilities)
    assert (labels == 32).all(), np.unique(labels)
    worst("scores", scores, REFERENCE.class_scores(masks, probabilities).max(axis=0), 2e-6)


@pytest.mark.parametrize("value", [0.1, 0.3, 1.1, 7.7, -3.3])
def test_a_limit_that_every_logit_equals_is_not_exceeded_by_rounding(bench: Bench, value: float) -> None:
    threshold = float(1 / (1 + np.exp(-np.float64(np.float32(value)))))
    logits = np.full((1, 7, 9), REFERENCE.threshold_logit(threshold), np.float32)
    logits[0, 2, 3] = np.nextafter(logits[0, 0, 0], np.float32(9))
    masks = Masks(logits, (28, 36), (27, 35), (27, 35))
    found = CudaModule(bench).region_boxes(masks, threshold)
    np.testing.assert_equal(found, REFERENCE.region_boxes(masks, threshold))
    whole = np.array([[0, 0, 35, 27]], np.int32), np.zeros(1, np.int32)
    arguments = (random_image(1, (27, 35)), masks, *whole, cropping(24, threshold))
    for with_bits in (False, True):
        crops = CudaModule(bench, with_bits=with_bits).crop_regions(*arguments)
        worst("crops", crops, REFERENCE.crop_regions(*arguments), 3e-6)


def test_more_masks_than_threads_do_not_race() -> None:
    areas = np.random.default_rng(0).integers(0, 2, 700).astype(np.int32)
    boxes = np.tile(np.array([1, 2, 9, 8], np.int32), (700, 1))
    with opened("emulated", 5, watched=True) as bench:
        order, crop, count = bench.new((700,), np.int32), bench.new((700, 4), np.int32), bench.new((1,), np.int32)
        bench.kernels.select_regions(bench.up(boxes), bench.up(areas), 1.0, (20, 20), order, crop, count, bench.stream)
        n = int(bench.down(count)[0])
        np.testing.assert_array_equal(bench.down(order)[:n], np.flatnonzero(areas))


def test_tables_of_another_stream_are_used_while_capturing(bench: Bench) -> None:
    """The weights that one stream computed are waited for by another's first resize; a capture cannot wait for them."""
    image = bench.up(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    resized = [bench.new((12, 14, 3), np.uint8) for _ in range(2)]
    network_input = bench.new((1, 3, 32, 32), np.float32)
    other = bench.device.stream()

    def resize(target: object, stream: object) -> None:
        bench.kernels.resize_normalize(image, (1, 2, 3), (1, 1, 1), network_input, target, stream)

    resize(resized[0], bench.stream)
    wanted = bench.down(resized[0])
    assert other.capture(lambda: resize(resized[1], other)) is None
    resize(resized[1], other)
    other.synchronize()
    bench.stream.fill(resized[1], 0)
    bench.stream.synchronize()
    graph = other.capture(lambda: resize(resized[1], other))
    if graph is None:
        pytest.fail("a resize whose tables are there could not be captured")
    graph.launch(other)
    other.synchronize()
    np.testing.assert_array_equal(bench.down(resized[1]), wanted)
