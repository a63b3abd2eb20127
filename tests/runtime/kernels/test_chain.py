"""The CUDA kernels one after the other, as an image passes through them; classes; bad arguments; what is kept."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.cuda_emulation import library
from tests.cuda_emulation.devices import DEVICES, Bench, opened
from tests.runtime.kernels.cases import (
    IMAGE_MEAN,
    IMAGE_STD,
    Case,
    cropping,
    kernels,
    random_image,
    random_masks,
    worst,
)
from vocabseg.runtime.bundle.sections import EnsembleSection
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels.device import fatbin, tables
from vocabseg.runtime.kernels.device.arguments import CropSource, Side
from vocabseg.runtime.kernels.geometry import expand_boxes
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.segmenter.classify import class_probabilities, query_distribution

HOST = kernels("host")
ENSEMBLE = EnsembleSection(enabled=True, weight=0.7, temperature=100)
QUERIES_ALONE = EnsembleSection(enabled=False, weight=0.7, temperature=100)


@pytest.fixture(params=DEVICES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with opened(request.param, seed=3) as found:
        yield found


class Image:
    """An image on its way: what it is made of, and its arrays on the device."""

    def __init__(self, bench: Bench, seed: int, case: Case, half: bool = False):
        self.case, self.pixels, self.bench = case, random_image(seed, (41, 33)), bench
        dtype = np.float16 if half else np.float32
        logits = random_masks(seed, case).logits
        logits[::3] -= 30  # empty ones
        logits = logits.astype(dtype)
        self.masks, self.on_device = case.masks(logits.astype(np.float32)), case.masks(bench.up(logits))
        n, (h, w) = case.count, case.image_size
        self.network_input, self.resized = bench.new((1, 3, *case.padded_size), dtype), bench.new((h, w, 3), np.uint8)
        self.boxes, self.areas = bench.new((n, 4), np.int32), bench.new((n,), np.int32)
        self.bits = bench.new((n, h, -(-w // 32)), np.uint32)
        self.order, self.crop_boxes = bench.new((n,), np.int32), bench.new((n, 4), np.int32)
        self.count = bench.new((1,), np.int32)

    def find_regions(self, ratio: float = 1.2) -> None:
        k, stream, case = self.bench.kernels, self.bench.stream, self.case
        image = self.bench.up(self.pixels)
        k.resize_normalize(image, IMAGE_MEAN, IMAGE_STD, self.network_input, self.resized, stream)
        k.region_boxes(self.on_device, 0.5, self.boxes, self.areas, self.bits, stream)
        k.select_regions(
            self.boxes, self.areas, ratio, case.image_size, self.order, self.crop_boxes, self.count, stream
        )  # fmt: skip

    def source(self, first: int, with_bits: bool = True) -> CropSource:
        bits = self.bits if with_bits else None
        return CropSource(self.resized, self.on_device, bits, self.crop_boxes, self.order, self.count, first)

    def wanted_crops(self, size: int, matting: bool = False) -> np.ndarray:
        case = self.case
        resized = HOST.resize_normalize(self.pixels, case.image_size, case.padded_size, IMAGE_MEAN, IMAGE_STD)[1]
        return HOST.crop_regions(resized, self.masks, *self.wanted_regions(), cropping(size, matting=matting))

    def wanted_regions(self) -> tuple[np.ndarray, np.ndarray]:
        boxes, areas = HOST.region_boxes(self.masks, 0.5)
        indices = np.flatnonzero(areas).astype(np.int32)
        return expand_boxes(boxes[indices], 1.2, self.case.image_size), indices


CASES = (
    Case(9, (8, 8), (32, 32), (31, 29), (23, 26), 6),
    Case(5, (4, 8), (16, 32), (13, 31), (10, 9), 6),
    Case(0, (4, 4), (16, 16), (9, 9), (5, 5), 6),
    Case(12, (9, 5), (36, 20), (35, 19), (40, 21), 6),
)


@pytest.mark.parametrize("matting", [False, True])
def test_regions_of_many_images_in_one_call(bench: Bench, matting: bool) -> None:
    # More than sixteen images that have masks and no bits, so that a second launch is needed; in float32 and float16.
    images = [Image(bench, seed, CASES[seed % 4], half=seed % 3 == 0) for seed in range(34)]
    for image in images:
        image.find_regions()
    wanted = [image.wanted_crops(11, matting) for image in images]
    firsts = np.cumsum([2, *(len(crops) + 1 for crops in wanted)])
    crops = bench.up(np.full((firsts[-1], 3, 11, 11), -5, np.float32))
    sources = [
        image.source(int(first), k % 2 == 0) for k, (image, first) in enumerate(zip(images, firsts, strict=False))
    ]
    patches = bench.up(np.full((firsts[-1], 5, 5), -5, np.float16))
    settings = cropping(11, matting=matting)
    bench.kernels.crop_regions(sources, settings, crops, bench.stream)
    bench.kernels.patch_masks(sources, settings, patches, bench.stream)
    found, found_patches = bench.down(crops), bench.down(patches)
    touched = np.zeros(len(found), bool)
    for image, first, own in zip(images, firsts, wanted, strict=False):
        part = slice(first, first + len(own))
        worst(f"crops from {first}", found[part], own, 3e-6)
        own_patches = HOST.patch_masks(image.masks, *image.wanted_regions(), settings, 5)
        np.testing.assert_array_equal(found_patches[part], own_patches)
        touched[part] = True
    assert (found[~touched] == -5).all()
    assert (found_patches[~touched] == -5).all()
    assert 80 < touched.sum() < len(touched)


def test_regions_beyond_the_room_write_nothing(bench: Bench) -> None:
    image = Image(bench, 0, CASES[0])
    image.find_regions()
    wanted = image.wanted_crops(7)
    assert len(wanted) >= 4
    crops = bench.up(np.full((5, 3, 7, 7), -5, np.float32))
    bench.kernels.crop_regions([image.source(1)], cropping(7), crops[:3], bench.stream)
    found = bench.down(crops)
    worst("crops", found[1:3], wanted[:2], 3e-6)
    assert (found[[0, 3, 4]] == -5).all()
    patches = bench.up(np.full((5, 3, 3), -5, np.float32))
    bench.kernels.patch_masks([image.source(1)], cropping(7), patches[:3], bench.stream)
    own = HOST.patch_masks(image.masks, *image.wanted_regions(), cropping(7), 3)
    np.testing.assert_array_equal(bench.down(patches)[1:3], own[:2])
    assert (bench.down(patches)[[0, 3, 4]] == -5).all()


def test_regions_beyond_the_end_of_a_list_write_nothing(bench: Bench) -> None:
    image = Image(bench, 0, CASES[0])
    image.find_regions()
    wanted = image.wanted_crops(7)
    assert len(wanted) >= 4
    short = replace(image.source(0), order=image.order[:2], crop_boxes=image.crop_boxes[:2])
    crops = bench.up(np.full((5 + len(wanted), 3, 7, 7), -5, np.float32))
    bench.kernels.crop_regions([short, image.source(5)], cropping(7), crops, bench.stream)  # one launch for both
    found = bench.down(crops)
    worst("crops", found[[0, 1, *range(5, len(found))]], np.concatenate([wanted[:2], wanted]), 3e-6)
    assert (found[2:5] == -5).all()


def test_labels_of_the_selected_regions(bench: Bench) -> None:
    image = Image(bench, 1, CASES[3])
    image.find_regions()
    valid = np.flatnonzero(HOST.region_boxes(image.masks, 0.5)[1])
    assert 0 < len(valid) < 12
    probabilities = np.full((12, 6), np.nan, np.float32)  # rows beyond the count are not looked at
    probabilities[: len(valid)] = np.random.default_rng(3).dirichlet(np.ones(6), len(valid))
    labels, scores = bench.new((40, 21), np.int32), bench.new((40, 21), np.float32)
    bench.kernels.compose(
        image.on_device, bench.up(probabilities), image.order, image.count, labels, scores, bench.stream
    )
    wanted = HOST.compose(image.masks[valid], probabilities[: len(valid)])
    worst("scores", bench.down(scores), wanted[1], 4e-6)
    assert (bench.down(labels) == wanted[0]).mean() > 0.99


def unit(generator: np.random.Generator, rows: int, depth: int) -> np.ndarray:
    values = generator.normal(size=(rows, depth)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 100.0])
@pytest.mark.parametrize(
    ("masks", "classes", "depths", "regions"),
    [(1, 1, (4, 6), 1), (9, 5, (33, 64), 6), (20, 70, (40, 100), 20), (7, 300, (16, 512), 0)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_classes(
    bench: Bench, masks: int, classes: int, depths: tuple[int, int], regions: int, temperature: float, dtype: type
) -> None:
    generator = np.random.default_rng(masks)
    valid = np.zeros(masks, bool)
    valid[generator.permutation(masks)[:regions]] = True
    order = np.full(masks, -1, np.int32)
    order[:regions] = np.flatnonzero(valid)
    query = generator.normal(0, 3, (masks, depths[0])).astype(dtype)
    features = np.full((regions + 1, depths[1]), np.nan, dtype)  # a row more than is looked at
    features[:regions] = generator.normal(0, 0.2, (regions, depths[1]))
    # Of two runs, the second has classes of one to three names.
    first = np.cumsum([0, *(1 + np.arange(classes) % 3)]).astype(np.int32)
    query_text, region_text = unit(generator, first[-1] + 1, depths[0]), unit(generator, first[-1], depths[1])
    several = np.append(first, first[-1] + 1).astype(np.int32)
    seen = generator.integers(0, 2, classes).astype(bool)
    up = bench.up
    places = up(order), up(np.array([regions], np.int32))
    for enabled, weight, flags, with_query, rule, names in (
        (True, 0.7, seen, True, True, None),
        (True, 0.6, None, True, True, None),
        (True, 0.7, seen, True, False, None),
        (False, 0.7, seen, True, True, None),
        (True, 0.0, seen, True, True, None),
        (True, 0.7, None, False, True, None),
        (True, 0.7, seen, True, True, first),
        (False, 0.7, seen, True, True, first),
        (True, 0.7, None, False, True, first),
    ):
        count = classes if names is None else int(first[-1])
        own_text, other_text = query_text[: count + 1], region_text[:count]
        query_side, region_side = Side(up(query), up(own_text)), Side(up(features), up(other_text))
        if names is not None:
            query_side, region_side = query_side._replace(first=up(several)), region_side._replace(first=up(first))
        ensemble = EnsembleSection(enabled=enabled, weight=weight, temperature=temperature, seen_rule=rule)
        wanted = class_probabilities(
            query.astype(np.float32) if with_query else None,
            own_text if with_query else None,
            valid,
            features[:regions].astype(np.float32),
            other_text,
            flags,
            ensemble,
            None if names is None else several,
            names,
        )
        probabilities = up(np.full((masks, classes), -3, np.float32))
        no_object = up(np.full(masks, -3, np.float32))
        bench.kernels.classify(
            query_side if with_query else None, region_side, None if flags is None else up(flags), *places, ensemble,
            probabilities, no_object, bench.stream,
        )  # fmt: skip
        found, rows = bench.down(probabilities), len(wanted)
        assert rows == (masks if with_query and weight > 0 else regions)
        worst("probabilities", found[:rows], wanted, 2e-5)
        assert (found[rows:] == -3).all()
        if rows == masks and with_query and weight > 0:
            none = query_distribution(
                query.astype(np.float32), own_text, temperature, several if names is not None else None
            )[:, -1]
            worst("no object", bench.down(no_object), none, 2e-5)
        else:
            assert (bench.down(no_object)[:rows] == 0).all()


def test_an_embedding_that_is_its_text(bench: Bench) -> None:
    text = unit(np.random.default_rng(0), 5, 8)  # its logit is 100, whose exponential no float holds
    query, probabilities = Side(bench.up(text[:1]), bench.up(text)), bench.new((1, 4), np.float32)
    bench.kernels.classify(query, None, None, None, None, QUERIES_ALONE, probabilities, None, bench.stream)
    worst("probabilities", bench.down(probabilities), query_distribution(text[:1], text, 100.0)[:, :4], 1e-5)


def test_rows_beyond_the_regions_are_not_written(bench: Bench) -> None:
    generator = np.random.default_rng(1)
    features, text = generator.normal(size=(3, 8)).astype(np.float32), unit(generator, 4, 8)
    region, probabilities = Side(bench.up(features), bench.up(text)), bench.up(np.full((5, 4), -3, np.float32))
    bench.kernels.classify(None, region, None, None, None, ENSEMBLE, probabilities, None, bench.stream)
    found = bench.down(probabilities)
    worst("probabilities of regions", found[:3].sum(axis=1), np.ones(3), 1e-5)
    assert (found[3:] == -3).all()


def test_classes_with_several_names_have_memory_for_both(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, spaces = list[int](), bench.kernels._workspaces
    monkeypatch.setattr(spaces, "get", lambda size, stream, get=spaces.get: sizes.append(size) or get(size, stream))
    first = np.array([0, 2, 5, 6], np.int32)  # three classes, and "no object"
    several = np.append(first, 7).astype(np.int32)
    ones = {rows: bench.up(np.ones((rows, 8), np.float32)) for rows in (2, 4, 6, 7)}
    query, region = Side(ones[4], ones[7], bench.up(several)), Side(ones[2], ones[6], bench.up(first))
    places = bench.up(np.array([3, 1, 0, 0], np.int32)), bench.up(np.array([2], np.int32))
    probabilities = bench.new((4, 3), np.float32)
    bench.kernels.classify(query, region, None, *places, ENSEMBLE, probabilities, None, bench.stream)
    assert sizes == [4 * (4 * 7 + 2 * 6 + 4 * 4 + 2 * 3)]  # the logits of all names, then of classes


def test_an_embedding_of_zeros_is_no_class(bench: Bench) -> None:
    probabilities = bench.new((1, 4), np.float32)
    zeros, text = np.zeros((1, 8), np.float32), unit(np.random.default_rng(0), 5, 8)
    query = Side(bench.up(zeros), bench.up(text))
    bench.kernels.classify(query, None, None, None, None, QUERIES_ALONE, probabilities, None, bench.stream)
    worst("probabilities", bench.down(probabilities), np.full((1, 4), 0.2), 1e-6)


@pytest.mark.skipif(library.compiler() is None, reason="no g++ to build the emulated kernels with")
@pytest.mark.parametrize("seed", [0, 11])
def test_no_kernel_races_or_leaves_its_memory(seed: int) -> None:
    """Every access of every kernel is checked, on the sizes where warps and words end in the middle of something."""
    with opened("emulated", seed, watched=True) as bench:
        for number, half in ((0, False), (1, True), (3, False)):
            case = CASES[number]
            image = Image(bench, number, case, half)
            image.find_regions()
            k, n = bench.kernels, case.count
            crops, patches = (bench.new(s, np.float16 if half else np.float32) for s in ((n, 3, 9, 9), (n, 4, 4)))
            for matting, with_bits in ((False, True), (False, False), (True, False)):
                source = image.source(0, with_bits)
                k.crop_regions([source], cropping(9, matting=matting), crops, bench.stream)
                k.patch_masks([source], cropping(9, matting=matting), patches, bench.stream)
            generator = np.random.default_rng(seed)
            texts = bench.up(unit(generator, 68, 20)), bench.up(unit(generator, 67, 12))
            query = Side(bench.up(generator.normal(size=(n, 20)).astype(np.float32)), texts[0])
            region = Side(bench.up(generator.normal(size=(n, 12)).astype(np.float16)), texts[1])
            probabilities, no_object = bench.new((n, 67), np.float32), bench.new((n,), np.float32)
            k.classify(query, region, None, image.order, image.count, ENSEMBLE, probabilities, no_object, bench.stream)
            pairs = np.array([*range(0, 67, 2), 67, 68], np.int32)  # two names a class, the last one alone
            query, region = query._replace(first=bench.up(pairs)), region._replace(first=bench.up(pairs[:-1]))
            fewer = bench.new((n, 34), np.float32)
            k.classify(query, region, None, image.order, image.count, ENSEMBLE, fewer, None, bench.stream)
            labels, scores = bench.new(case.output_size, np.int32), bench.new(case.output_size, np.float32)
            k.compose(image.on_device, probabilities, None, None, labels, scores, bench.stream)
            assert bench.down(labels).max() < 67
            worst("crops", bench.down(crops)[: len(image.wanted_crops(9))], image.wanted_crops(9, True), 2e-3)


@pytest.mark.skipif(library.compiler() is None, reason="no g++ to build the emulated kernels with")
def test_tensor_cores_of_turing_and_many_masks_are_watched() -> None:
    case = Case(130, (3, 4), (12, 16), (11, 15), (7, 9), 20)
    masks = random_masks(0, case)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(20), 130).astype(np.float32)
    wanted = HOST.compose(masks, probabilities)
    with opened("emulated", 2, kernels=library.emulation(watched=True, turing=True)) as bench:
        labels, scores = bench.new((7, 9), np.int32), bench.new((7, 9), np.float32)
        on_device = case.masks(bench.up(masks.logits))
        bench.kernels.compose(on_device, bench.up(probabilities), None, None, labels, scores, bench.stream)
        worst("scores", bench.down(scores), wanted[1], 4e-6)
        assert (bench.down(labels) == wanted[0]).mean() > 0.95


def test_tables_are_kept_but_not_without_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TABLES", 8)
    k = bench.kernels
    k._tables._tables.clear()
    image = bench.up(random_image(0, (6, 6)))
    for size in [*range(3, 30), *range(3, 30)]:
        resized, network_input = bench.new((size, 5, 3), np.uint8), bench.new((1, 3, 32, 32), np.float32)
        other = bench.device.stream()  # which has to wait for the table that the first stream makes
        for stream in (bench.stream, other):
            k.resize_normalize(image, IMAGE_MEAN, IMAGE_STD, network_input, resized, stream)
        wanted = HOST.resize_normalize(random_image(0, (6, 6)), (size, 5), (32, 32), IMAGE_MEAN, IMAGE_STD)
        np.testing.assert_array_equal(network_input.to_host(other), wanted[0])
        assert len(k._tables._tables) <= 8
    made = k._tables.made
    k.resize_normalize(image, IMAGE_MEAN, IMAGE_STD, network_input, resized, bench.stream)
    assert k._tables.made == made  # the newest are kept


def test_tables_that_go_are_not_freed_before_what_reads_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TABLES", 2)
    k, pixels, results = bench.kernels, random_image(0, (6, 6)), []
    k._tables._tables.clear()
    image = bench.up(pixels)
    for size in range(20, 28):
        before, kept = bench.stream.record(), len(k._tables._tables)
        resized, network_input = bench.new((size, 5, 3), np.uint8), bench.new((1, 3, 32, 32), np.float32)
        k.resize_normalize(image, IMAGE_MEAN, IMAGE_STD, network_input, resized, bench.stream)
        assert kept < 2 or before.query()
        results.append((size, network_input))
    for size, network_input in results:
        wanted = HOST.resize_normalize(pixels, (size, 5), (32, 32), IMAGE_MEAN, IMAGE_STD)
        np.testing.assert_array_equal(bench.down(network_input), wanted[0])


def test_a_workspace_that_grows_keeps_what_runs(bench: Bench) -> None:
    case = Case(40, (4, 4), (16, 16), (15, 15), (9, 9), 30)
    masks, results = random_masks(0, case), []
    on_device = case.masks(bench.up(masks.logits))
    bench.kernels._workspaces._blocks.clear()
    given = [np.random.default_rng(k).dirichlet(np.ones(k), 40).astype(np.float32) for k in (3, 30, 4000)]
    for probabilities, there in [(each, bench.up(each)) for each in given]:  # uploads may wait: they come before
        out, before = (bench.new((9, 9), np.int32), bench.new((9, 9), np.float32)), bench.stream.record()
        bench.kernels.compose(on_device, there, None, None, *out, bench.stream)
        results.append((probabilities, out))
    assert before.query()
    for probabilities, (_, scores) in results:
        worst("scores", bench.down(scores), HOST.compose(masks, probabilities)[1], 1e-5)


def test_a_workspace_that_grows_writes_nothing_into_what_follows_it(bench: Bench) -> None:
    case, other = Case(40, (4, 4), (16, 16), (15, 15), (9, 9), 30), bench.device.stream()
    spaces = bench.kernels._workspaces
    on_device = case.masks(bench.up(random_masks(0, case).logits))
    given = [bench.up(np.full((40, classes), 0.5, np.float32)) for classes in (3, 4000)]
    out = bench.new((9, 9), np.int32), bench.new((9, 9), np.float32)
    spaces._blocks.clear()
    bench.kernels.compose(on_device, given[0], None, None, *out, bench.stream)
    first = spaces._blocks[bench.stream.handle]
    address, size = first.pointer, first.nbytes
    del first
    bench.kernels.compose(on_device, given[1], None, None, *out, bench.stream)
    follower = bench.device.empty((size,), np.uint8)
    assert follower.pointer == address, "the pool gave other memory"
    other.upload(follower, np.full(size, 255, np.uint8))
    other.synchronize()
    bench.stream.synchronize()
    assert (bench.down(follower) == 255).all()


def test_every_stream_has_a_workspace_of_its_own(bench: Bench) -> None:
    streams, spaces = [bench.stream, bench.device.stream()], bench.kernels._workspaces
    first, second = (spaces.get(16, stream).pointer for stream in streams)
    assert first != second
    assert [spaces.get(16, stream).pointer for stream in streams] == [first, second]


def small(logits: Any) -> Masks:
    return Masks(logits, (8, 8), (8, 8), (4, 4))


BAD: list[tuple[str, Callable[[Bench], None]]] = [
    (
        r"image has type float32: give uint8 of shape \(H, W, 3\)",
        lambda b: b.kernels.resize_normalize(
            b.new((4, 4, 3), np.float32), IMAGE_MEAN, IMAGE_STD, b.new((1, 3, 8, 8), np.float32),
            b.new((4, 4, 3), np.uint8), b.stream,
        ),
    ),
    (
        r"padded size \(8, 8\) is smaller than the image size \(9, 4\)",
        lambda b: b.kernels.resize_normalize(
            b.new((4, 4, 3), np.uint8), IMAGE_MEAN, IMAGE_STD, b.new((1, 3, 8, 8), np.float32),
            b.new((9, 4, 3), np.uint8), b.stream,
        ),
    ),
    (
        r"mask_logits must be a DeviceArray of shape \(masks, h, w\), not ndarray",
        lambda b: b.kernels.region_boxes(
            small(np.zeros((1, 2, 2), np.float32)), 0.5, b.new((1, 4), np.int32), b.new((1,), np.int32), None, b.stream
        ),
    ),
    (
        r"bits has shape \(1, 8, 2\): give \(1, 8, 1\)",
        lambda b: b.kernels.region_boxes(
            small(b.new((1, 2, 2), np.float16)), 0.5, b.new((1, 4), np.int32), b.new((1,), np.int32),
            b.new((1, 8, 2), np.uint32), b.stream,
        ),
    ),
    (
        r"areas has shape \(2,\): give \(3,\)",
        lambda b: b.kernels.select_regions(
            b.new((3, 4), np.int32), b.new((2,), np.int32), 1.0, (8, 8), b.new((3,), np.int32), b.new((3, 4), np.int32),
            b.new((1,), np.int32), b.stream,
        ),
    ),
    (
        r"crops has shape \(1, 3, 8, 9\): give \(crops, 3, 8, 8\)",
        lambda b: b.kernels.crop_regions([], cropping(8), b.new((1, 3, 8, 9), np.float32), b.stream),
    ),
    (
        r"patches has shape \(1, 3, 4\): give \(crops, G, G\)",
        lambda b: b.kernels.patch_masks([], cropping(8), b.new((1, 3, 4), np.float32), b.stream),
    ),
    (
        "patch_grid is 9: give a whole number from 1 to the crop's side, 8",
        lambda b: b.kernels.patch_masks([], cropping(8), b.new((1, 9, 9), np.float32), b.stream),
    ),
    (
        r"resized is 8 x 9, but the masks' image size is \(8, 8\)",
        lambda b: b.kernels.crop_regions(
            [CropSource(
                b.new((8, 9, 3), np.uint8), small(b.new((1, 2, 2), np.float32)), None, b.new((1, 4), np.int32),
                b.new((1,), np.int32), b.new((1,), np.int32), 0,
            )],
            cropping(8), b.new((1, 3, 8, 8), np.float32), b.stream,
        ),
    ),
    (
        "order and count belong together",
        lambda b: b.kernels.compose(
            small(b.new((2, 2, 2), np.float32)), b.new((2, 3), np.float32), b.new((2,), np.int32), None,
            b.new((4, 4), np.int32), b.new((4, 4), np.float32), b.stream,
        ),
    ),
    (
        r"probabilities has shape \(3, 3\): give \(2, classes\)",
        lambda b: b.kernels.compose(
            small(b.new((2, 2, 2), np.float32)), b.new((3, 3), np.float32), None, None,
            b.new((4, 4), np.int32), b.new((4, 4), np.float32), b.stream,
        ),
    ),
    (
        r"labels has shape \(4, 5\): give \(4, 4\)",
        lambda b: b.kernels.compose(
            small(b.new((2, 2, 2), np.float32)), b.new((2, 3), np.float32), None, None,
            b.new((4, 5), np.int32), b.new((4, 4), np.float32), b.stream,
        ),
    ),
    (
        "probabilities has no class",
        lambda b: b.kernels.compose(
            small(b.new((2, 2, 2), np.float32)), b.new((2, 0), np.float32), None, None,
            b.new((4, 4), np.int32), b.new((4, 4), np.float32), b.stream,
        ),
    ),
    (
        r"query text has shape \(3, 8\): give \(4, 8\)",
        lambda b: b.kernels.classify(
            Side(b.new((2, 8), np.float32), b.new((3, 8), np.float32)), None, None, None, None, QUERIES_ALONE,
            b.new((2, 3), np.float32), None, b.stream,
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message[:20] for message, _ in BAD])
def test_bad_arguments(bench: Bench, message: str, call: Callable[[Bench], None]) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(bench)
    assert "\n" not in str(error.value)


def test_kernels_that_were_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(fatbin.resources, "files", lambda package: tmp_path)
    with pytest.raises(EngineError, match=r"CUDA kernels are not part of this installation: put nvcc .* on PATH"):
        fatbin.kernels_fatbin()
