"""Grids cover every pixel and row once, stay within CUDA's limits, and structs are those of the C++ sources."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuda_emulation import library
from vocabseg.runtime.kernels.device import launch as cuda_launch

sizes = st.integers(1, 5000)


def within_limits(launch: cuda_launch.Launch) -> bool:
    threads = int(np.prod(launch.block))
    return min(launch.grid) >= 1 and max(launch.grid[1:]) <= 65535 and threads <= 1024 and threads % 4 == 0


@pytest.mark.skipif(library.compiler() is None, reason="no g++ to build the emulated kernels with")
@pytest.mark.parametrize(
    ("kernel", "place", "struct"),
    [
        ("resize_normalize_f32", 1, cuda_launch.RESIZE_SHAPE),
        ("resize_normalize_f32", 2, cuda_launch.RESIZE_TABLE),
        ("resize_normalize_f32", 4, cuda_launch.COLOURS),
        ("region_boxes_f16", 1, cuda_launch.MASK_SHAPE),
        ("crop_regions_bits_f16", 0, np.dtype((cuda_launch.CROP_SOURCE, cuda_launch.CROP_IMAGES))),
        ("crop_regions_bits_f16", 1, cuda_launch.CROP_SETTINGS),
        ("patch_masks_logits_f32", 1, cuda_launch.PATCH_SETTINGS),
        ("similarity", 0, np.dtype((cuda_launch.SIDE, 2))),
        ("classify", 0, cuda_launch.ENSEMBLE),
        ("compose_f32", 1, cuda_launch.CLASS_TABLE),
        ("compose_f32", 4, cuda_launch.COMPOSE_SHAPE),
    ],
)
def test_structs(kernel: str, place: int, struct: np.dtype) -> None:
    assert library.emulation().parameter_sizes(kernel)[place] == struct.itemsize


@given(sizes, sizes)
def test_resize_covers_the_padded_image(h: int, w: int) -> None:
    launch = cuda_launch.resize((h, w))
    across, down = launch.grid[0] * launch.block[0], launch.grid[1] * launch.block[1]
    assert w <= across < w + 32
    assert h <= down < h + 8


@given(st.integers(1, 300), sizes, sizes)
def test_box_blocks_share_their_words_evenly(masks: int, h: int, w: int) -> None:
    launch = cuda_launch.region_boxes(masks, (h, w))
    assert launch.grid[2] == masks
    assert launch.grid[0] * 64 * 32 >= w > (launch.grid[0] - 1) * 64 * 32
    assert launch.grid[1] * 32 >= h > (launch.grid[1] - 1) * 32
    words, warps = min(-(-w // 32), 64), launch.block[0] // 32
    assert 1 <= warps <= 8
    assert -(-words // warps) == -(-words // 8)  # no more turns than with all eight warps


def test_box_blocks_of_the_published_size() -> None:
    assert cuda_launch.region_boxes(100, (640, 864)) == ((1, 20, 100), (7 * 32, 1, 1), 0)


@given(st.integers(1, 4096), st.integers(1, 1000), st.integers(1, 16))
def test_crop_blocks_cover_the_crop(size: int, regions: int, images: int) -> None:
    launch, across = cuda_launch.crop_regions(size, regions, images)
    wide, high, _ = launch.block
    assert launch.grid[1:] == (regions, images)
    assert launch.grid[0] % across == 0
    assert across * wide * 2 >= size > (across - 1) * wide * 2
    bands = launch.grid[0] // across
    assert bands * high * 16 >= size > (bands - 1) * high * 16
    assert wide * high <= 256
    assert high <= 8


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 1000), st.integers(1, 16))
def test_patch_blocks_have_a_number_per_patch(size: int, across: int, regions: int, images: int) -> None:
    across = min(size, across)
    launch = cuda_launch.patch_masks(size, across, regions, images)
    assert launch.grid == (across, regions, images)
    assert within_limits(launch)
    assert launch.shared_bytes == 4 * across
    assert launch.block[0] <= 256  # the kernel's launch bounds


def test_crop_blocks_of_the_published_size() -> None:
    assert cuda_launch.crop_regions(224, 100, 1) == (((7, 100, 1), (112, 2, 1), 0), 1)


@given(st.integers(0, 1200), st.integers(1, 12000), sizes, sizes)
def test_compose_plans(masks: int, classes: int, h: int, w: int) -> None:
    plan = cuda_launch.compose(masks, classes, (h, w))
    assert within_limits(plan.launch)
    assert plan.launch.grid[0] * 8 >= w
    assert plan.launch.grid[1] * 8 >= h
    assert plan.groups * 16 >= classes > (plan.groups - 1) * 16
    assert plan.steps * 16 >= masks > (plan.steps - 1) * 16
    assert plan.many == (masks > 112)
    assert plan.launch.shared_bytes <= 64 * 120 * 4  # whatever the numbers of masks and classes
    assert plan.table_bytes == plan.groups * 16 * plan.steps * 16 * 4
    assert plan.prepare.grid[0] * plan.prepare.block[0] * 32 >= plan.table_bytes


@given(sizes, sizes)
def test_capacity_holds_every_span(in_size: int, out_size: int) -> None:
    capacity = cuda_launch.triangle_capacity(in_size, out_size)
    scale = in_size / out_size
    radius = max(scale, 1.0)
    centres = (np.arange(out_size) + 0.5) * scale
    first = np.maximum((centres - radius + 0.5).astype(int), 0)
    last = np.minimum((centres + radius + 0.5).astype(int), in_size)
    assert (last - first).max() <= capacity
