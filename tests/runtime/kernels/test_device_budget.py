"""The region budget's CUDA kernels against its NumPy specification."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.cuda_emulation.devices import DEVICES, Bench, opened
from tests.runtime.kernels.cases import CASES, kernels, random_masks
from tests.runtime.kernels.device_module import CudaModule
from tests.runtime.kernels.test_budget import OFF, near_duplicates
from vocabseg.runtime.kernels import budget
from vocabseg.runtime.kernels.device import launch
from vocabseg.runtime.masks import Masks

HOST = kernels("host")
LIMITS = [
    {},
    {"share_iou": 0.5},
    {"share_iou": 0.8, "max_regions": 4},
    {"share_iou": 1.0, "min_objectness": 0.3},
    {"min_objectness": 1.0},
    {"share_iou": 0.7, "min_objectness": 0.3, "max_regions": 5},
]


@pytest.fixture(scope="module", params=DEVICES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with opened(request.param, seed=5) as found:
        yield found


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("seed", range(2))
def test_leaders(bench: Bench, seed: int, limits: dict) -> None:
    masks = near_duplicates(seed)
    boxes, areas = HOST.region_boxes(masks, 0.5)
    # Eighths, so that one minus them is exact, and some are equal.
    objectness = (np.random.default_rng(seed).integers(0, 9, len(masks)) / 8).astype(np.float32)
    given = boxes, areas, objectness, HOST.region_bits(masks, 0.5), *(OFF | limits).values()
    wanted = budget.choose_leaders(*given)
    for inverted in (False, True):
        np.testing.assert_array_equal(CudaModule(bench).choose_leaders(*given, inverted), wanted)


def test_the_best_mask_leads_even_if_no_object_is_good_enough(bench: Bench) -> None:
    masks = near_duplicates(0)
    boxes, areas = HOST.region_boxes(masks, 0.5)
    objectness = np.linspace(0.1, 0.4, len(masks), dtype=np.float32)
    given = boxes, areas, objectness, HOST.region_bits(masks, 0.5), 0.9, 0.5, None
    found = CudaModule(bench).choose_leaders(*given)
    np.testing.assert_array_equal(found, budget.choose_leaders(*given))
    assert (found == np.flatnonzero(areas)[-1]).any()


def test_more_masks_than_threads() -> None:
    masks = near_duplicates(4, 300, (60, 400))
    boxes, areas = HOST.region_boxes(masks, 0.5)
    objectness = np.random.default_rng(0).random(300, np.float32)
    objectness[np.flatnonzero(areas)[[3, 9]]] = np.nan  # of a network that failed; counts as 0
    rest = HOST.region_bits(masks, 0.5), 0.6, 0.2, 40
    wanted = budget.choose_leaders(boxes, areas, np.nan_to_num(objectness), *rest)
    with opened("emulated", seed=3, watched=True) as bench:  # every access to memory is checked
        np.testing.assert_array_equal(CudaModule(bench).choose_leaders(boxes, areas, objectness, *rest), wanted)
    assert (wanted == np.arange(300)).sum() == 40 < (wanted >= 0).sum()


@pytest.mark.parametrize("share", [0.5, 0.7, 0.8, 0.9])
def test_near_masks(bench: Bench, share: float) -> None:
    generator = np.random.default_rng(2)
    base = np.pad(generator.random((25, 150)) < 0.6, ((3, 2), (7, 5)))  # six words to a row
    inside = np.stack([base ^ (base & (generator.random(base.shape) < flipped)) for flipped in np.linspace(0, 0.5, 12)])
    inside[[4, 9]] = False
    masks = Masks(np.where(inside, np.float32(1), np.float32(-1)), *[inside.shape[1:]] * 3)
    boxes, areas = HOST.region_boxes(masks, 0.5)
    near = bench.up(np.full((12, 12), 7, np.uint8))
    bits = bench.up(HOST.region_bits(masks, 0.5))
    bench.kernels.near_masks(bits, bench.up(boxes), bench.up(areas), share, near, bench.stream)
    both = np.einsum("kyx,lyx->kl", inside.astype(int), inside.astype(int))
    wanted = (both > 0) & (both >= share * (areas[:, None] + areas - both))
    found = bench.down(near)
    assert (found[np.eye(12, dtype=bool)] == 7).all()
    np.testing.assert_array_equal(found[~np.eye(12, dtype=bool)], wanted[~np.eye(12, dtype=bool)])
    assert 0 < wanted[~np.eye(12, dtype=bool)].sum() < 90


def test_an_iou_of_exactly_the_limit(bench: Bench) -> None:
    logits = np.full((2, 2, 70), -1, np.float32)
    logits[0, 0, 62:66] = logits[1, 0, 62:65] = 1
    masks = Masks(logits, (2, 70), (2, 70), (2, 70))
    given = *HOST.region_boxes(masks, 0.5), np.array([0.1, 0.2], np.float32), HOST.region_bits(masks, 0.5)
    for limit, wanted in ((0.75, [1, 1]), (0.7500001, [0, 1])):
        assert CudaModule(bench).choose_leaders(*given, limit, 0.0, None).tolist() == wanted


@pytest.mark.parametrize("logits", [np.float32, np.float16])
@pytest.mark.parametrize("name", ["one_pixel", "own_masks", "reduced"])
def test_confidences(bench: Bench, name: str, logits: type) -> None:
    masks = random_masks(6, CASES[name], logits)
    found = CudaModule(bench, logits=logits).mask_confidences(masks.logits, 0.4)
    np.testing.assert_allclose(found, budget.mask_confidences(masks.logits, 0.4), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shared_rows(bench: Bench, dtype: type) -> None:
    leaders = np.array([4, -1, 2, 2, 4, -1, 6, 2], np.int32)
    features = np.random.default_rng(1).random((3, 301)).astype(dtype)
    found = CudaModule(bench).share_rows(features, leaders)
    np.testing.assert_array_equal(found, features[[1, 0, 0, 1, 2, 0]])


def test_bad_arguments(bench: Bench) -> None:
    new, k = bench.new, launch.MOST_NEAR + 1
    with pytest.raises(ValueError, match=f"bits holds {k} masks: at most 4096 are compared"):
        bench.kernels.near_masks(new((k, 1, 1), np.uint32), None, None, 0.9, None, bench.stream)  # type: ignore[arg-type]
    ints = [new((3,), np.int32) for _ in range(3)]
    with pytest.raises(ValueError, match="leads has shape"):
        bench.kernels.choose_leaders(
            new((3,), np.float32), False, None, 0.0, None, *ints, new((4,), np.int32), bench.stream
        )
