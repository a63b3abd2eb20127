"""The CUDA kernels at the edges of memory: narrow and unaligned images, last masks, classes and values."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.cuda_emulation.devices import DEVICES, Bench, opened
from tests.runtime.kernels.cases import Case, cropping, kernels, random_image, random_masks, worst
from tests.runtime.kernels.device_module import CudaModule
from vocabseg.runtime.kernels.device.arguments import CropSource
from vocabseg.runtime.masks import Masks

REFERENCE, HOST = kernels("reference"), kernels("host")


@pytest.fixture(params=DEVICES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with opened(request.param, seed=3) as found:
        yield found


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_unusable_values(bench: Bench, dtype: type) -> None:
    """Each value counts, however many there are; a flag that is set stays so."""

    def flag_of(values: np.ndarray, before: int = 0) -> int:
        flag = bench.up(np.array([before], np.int32))
        bench.kernels.find_unusable(bench.up(values), flag, bench.stream)
        return int(bench.down(flag)[0])

    for count, places in ((1, (0,)), (300, (0, 255, 299)), (5000, (4999,))):
        values = np.full(count, np.finfo(dtype).max, dtype)
        assert (flag_of(values), flag_of(values, 1)) == (0, 1)
        for place in places:
            for wrong in (np.nan, np.inf, -np.inf):
                values[place] = wrong
                assert flag_of(values) == 1
            values[place] = 0


@pytest.mark.parametrize("with_bits", [False, True])
def test_crops_of_an_image_at_any_address(bench: Bench, with_bits: bool) -> None:
    masks = random_masks(1, Case(1, (3, 3), (5, 7), (5, 7), (5, 7), 1))
    masks.logits[...] += 4
    boxes = np.array([[0, 0, 7, 5]], np.int32)
    for skew in range(4):
        image = random_image(skew, (5, 7))
        whole = bench.up(np.concatenate([np.zeros(3 * 7 * skew, np.uint8), image.ravel()]).reshape(-1, 7, 3))
        assert whole[skew:].pointer % 4 == 3 * 7 * skew % 4
        on_device = Masks(bench.up(masks.logits), masks.padded_size, masks.image_size, masks.output_size)
        bits = bench.new((1, 5, 1), np.uint32)
        bench.kernels.region_boxes(
            on_device, 0.5, bench.new((1, 4), np.int32), bench.new((1,), np.int32), bits, bench.stream
        )
        order, count = bench.up(np.zeros(1, np.int32)), bench.up(np.ones(1, np.int32))
        crops = bench.new((1, 3, 9, 9), np.float32)
        source = CropSource(whole[skew:], on_device, bits if with_bits else None, bench.up(boxes), order, count, 0)
        bench.kernels.crop_regions([source], cropping(9), crops, bench.stream)
        wanted = REFERENCE.crop_regions(image, masks, boxes, np.zeros(1, np.int32), cropping(9))
        worst("crops", bench.down(crops), wanted, 3e-6)


def test_matting_of_certain_logits(bench: Bench) -> None:
    logits = np.array([-60000, -120, -90, -60, 60, 90, 120, 60000, 0], np.float32).reshape(1, 3, 3)
    masks, image = Masks(logits, (9, 9), (9, 9), (9, 9)), random_image(3, (9, 9))
    arguments = (image, masks, np.array([[0, 0, 9, 9]], np.int32), np.zeros(1, np.int32), cropping(18, matting=True))
    worst("crops", CudaModule(bench).crop_regions(*arguments), REFERENCE.crop_regions(*arguments), 3e-6)


def test_nothing_beyond_the_edges_is_touched() -> None:
    """Every access is checked: images of few columns, crops of odd sizes, an odd number of groups of classes, and masks
    that fill neither a step nor a warp."""
    with opened("emulated", 2, watched=True) as bench:
        for width in (1, 2, 3, 4, 37):
            masks = Masks(np.full((1, 3, 3), 5, np.float32), (5, width), (5, width), (5, width))
            boxes = np.array([[0, 0, width, 5], [width - 1, 4, width, 5]], np.int32)
            arguments = (random_image(width, (5, width)), masks, boxes, np.zeros(2, np.int32), cropping(9))
            for with_bits, dtype in ((False, np.float32), (True, np.float32), (True, np.float16)):
                found = CudaModule(bench, dtype, with_bits=with_bits).crop_regions(*arguments)
                worst("crops", found, REFERENCE.crop_regions(*arguments), 1e-4 if dtype == np.float32 else 2e-3)
        for count, classes in ((113, 16), (130, 35), (3, 17), (20, 40)):
            case = Case(count, (3, 4), (12, 16), (11, 15), (9, 10), classes)
            probabilities = np.random.default_rng(0).dirichlet(np.ones(classes), count).astype(np.float32)
            _, scores = CudaModule(bench).compose(random_masks(0, case), probabilities)
            worst("scores", scores, HOST.compose(random_masks(0, case), probabilities)[1], 3e-5)


def test_boxes_of_many_masks_of_which_some_are_empty(bench: Bench) -> None:
    masks = random_masks(0, Case(150, (3, 4), (12, 16), (11, 15), (9, 10), 1))
    masks.logits[::3] = -9
    found = CudaModule(bench).region_boxes(masks, 0.5)
    np.testing.assert_equal(found, REFERENCE.region_boxes(masks, 0.5))
    assert not found[0][::3].any()


def test_regions_beyond_the_count_are_not_looked_at() -> None:
    """Every access is checked; nobody has written the rest of the list, nor of the probabilities."""
    case = Case(20, (3, 4), (12, 16), (11, 15), (9, 10), 5)
    masks, chosen = random_masks(0, case), np.array([3, 19, 4, 0, 7], np.int32)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), 5).astype(np.float32)
    with opened("emulated", 2, watched=True) as bench:
        order, rows = bench.new((20,), np.int32), bench.new((20, 5), np.float32)
        for target, values in ((order, chosen), (rows, probabilities)):
            bench.stream.upload(target[: len(values)], values)
        labels, scores = bench.new((9, 10), np.int32), bench.new((9, 10), np.float32)
        on_device = case.masks(bench.up(masks.logits))
        count = bench.up(np.array([5], np.int32))
        bench.kernels.compose(on_device, rows, order, count, labels, scores, bench.stream)
        worst("scores", bench.down(scores), HOST.compose(masks[chosen], probabilities)[1], 4e-6)
