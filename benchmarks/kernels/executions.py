"""How often the CUDA kernels run their loops on given inputs: the landmarks from which instructions are counted.

Every function returns the warps that enter a kernel (_f16, sm_90) and how often the instructions whose text begins with
a regular expression run, as benchmarks/kernels/sass.py takes them. Mask logits are float32 values of halves.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from vocabseg.benchmarks.kernels.inputs import CROP_SIZE, THRESHOLD
from vocabseg.runtime.kernels import reference
from vocabseg.runtime.kernels.budget import may_overlap
from vocabseg.runtime.kernels.device import launch
from vocabseg.runtime.masks import Masks

Array = np.ndarray
MAYBE = r"(@!?U?P\d )?"  # also where a predicate decides


class Executions(NamedTuple):
    """What one launch runs."""

    warps: int
    landmarks: dict[str, float]


def warps_of(grid: launch.Launch) -> int:
    """All warps of a launch."""
    return math.prod(grid.grid) * -(-math.prod(grid.block) // launch.WARP)


def resize_normalize(original: Sequence[int], resized: Sequence[int], padded: Sequence[int]) -> Executions:
    """Of an image of `original` size, resized, and padded."""
    rows, columns = (_triangle_spans(i, o) for i, o in zip(original, resized, strict=True))
    width, height = launch.RESIZE_BLOCK
    lanes = [np.ptp(columns[x : x + width], axis=1).max() for x in range(0, resized[1], width)]
    bands = [rows[y : y + height] for y in range(0, resized[0], height)]
    narrow = [band[-1, 1] - band[0, 0] for band in bands]  # rows of the image that are resized horizontally
    warps = warps_of(launch.resize((padded[0], padded[1])))
    return Executions(warps, {
        MAYBE + r"LDG\.E\.U8": 3 * sum(narrow) * sum(lanes),
        r"STS\.U8": 3 * sum(narrow) * len(lanes),
        MAYBE + r"LDS\.U8": 3 * np.ptp(rows, axis=1).sum() * len(lanes),
        r"BAR": 2 * height * len(lanes) * sum(-(-count // 32) for count in narrow),
        r"FCHK": 3 * resized[0] * len(lanes),
        r"STG\.E\.U16": 3 * warps,
    })  # fmt: skip


def _triangle_spans(in_size: int, out_size: int) -> Array:
    """pixel_math.h's triangle_span: (out_size, 2) first source pixel and the one past the last."""
    scale = in_size / out_size
    centre = (np.arange(out_size) + 0.5) * scale
    ends = np.stack([centre - max(scale, 1.0), centre + max(scale, 1.0)], axis=1) + 0.5
    return np.clip(ends.astype(np.int64), 0, in_size)


def region_boxes(masks: Masks) -> Executions:
    """With bits."""
    (n, mask_h, mask_w), (h, w) = masks.logits.shape, masks.image_size
    low, high, low_weight, high_weight = reference.linear_taps(mask_h, masks.padded_size[0], h)
    left, right, *across = reference.linear_taps(mask_w, masks.padded_size[1], w)
    limit = reference.threshold_logit(THRESHOLD)
    near, far = masks.logits[:, :, left], masks.logits[:, :, right]
    wide, highest = near * across[0] + far * across[1], np.maximum(near, far)
    grid = launch.region_boxes(n, (h, w))
    columns = [right[min(x + launch.WARP, w) - 1] - left[x] + 1 for x in range(0, w, launch.WARP)]  # of a word's mask
    chunks = n * sum(-(-count // 16) for count in columns)
    tests = pretests = runs = rows = full = stores = 0
    for top in range(0, h, launch.BAND_ROWS):
        band = range(top, min(top + launch.BAND_ROWS, h))
        live = _words(highest[:, low[band[0]] : high[band[-1]] + 1].max(axis=1)) >= limit
        tests += live.size
        pretests += 5 * chunks * -(-(high[band[-1]] - low[band[0]] + 1) // 10)
        inside = np.zeros_like(live)
        for (above, below), run in groupby(band, key=lambda y: (low[y], high[y])):
            runs += live.sum()
            close = live & (_words(np.maximum(wide[:, above], wide[:, below])) >= limit)
            for y in run:
                rows += close.sum()
                inside |= _words(wide[:, above] * low_weight[y] + wide[:, below] * high_weight[y]) > limit
        full += inside.sum()
        first = range(0, grid.block[0], launch.WARP)
        stores += n * sum(-(-max(0, len(band) * live.shape[1] - k) // grid.block[0]) for k in first)
    blocks, warps = math.prod(grid.grid), warps_of(grid)
    return Executions(warps, {
        MAYBE + r"LDG\.E\.U16": pretests + 4 * runs,
        r"VOTE\.ANY P": tests + runs,
        r"VOTE\.ANY R": rows + blocks,
        r"SHFL\.DOWN": 2 * blocks,
        r"SHFL\.IDX": 2 * tests,
        r"POPC": full,
        r"LDS R": 2 * tests + runs + warps + stores,
        r"STS \[R\d+\], R\d": tests,
        r"STG": stores,
    })  # fmt: skip


def _words(values: Array) -> Array:
    """The highest of each 32 columns: (N, w) -> (N, words)."""
    fill = np.full((len(values), -values.shape[1] % launch.WARP), -np.inf, np.float32)
    return np.concatenate([values, fill], axis=1).reshape(len(values), -1, launch.WARP).max(axis=2)


def select_regions(areas: Array) -> Executions:
    """Of (N,) areas."""
    found = np.pad(areas > 0, (0, -len(areas) % 256)).reshape(-1, launch.WARP)
    return Executions(8, {r"BAR": 2 * len(found), r"STG": 5 * found.any(axis=1).sum() + 1})


def near_masks(boxes: Array, areas: Array, share: float) -> Executions:
    """Of masks (N, 4) and (N,), of which those are compared by their bits that may overlap by `share`."""
    one, other = np.tril_indices(len(boxes), -1)
    filled = (areas[one] > 0) & (areas[other] > 0)
    close = filled & may_overlap(one, other, boxes, areas, share)
    left, top = np.maximum(boxes[one[close], :2], boxes[other[close], :2]).T
    right, bottom = np.minimum(boxes[one[close], 2:], boxes[other[close], 2:]).T
    words = ((right - 1) // launch.WARP + 1 - left // launch.WARP) * (bottom - top)
    return Executions(warps_of(launch.near_masks(len(boxes))), {
        r"LDG\.E R": 2 * len(filled) + 8 * filled.sum(),
        r"POPC": np.ceil(words / launch.WARP).sum(),
        r"SHFL\.BFLY PT": 5 * close.sum(),
    })  # fmt: skip


def crop_regions(inside: Sequence[Array], boxes: Array, capacity: int) -> Executions:
    """Of regions (V, 4) with their masks, (h, w) bool each; blocks of regions up to `capacity` return at once."""
    grid, across = launch.crop_regions(CROP_SIZE, capacity, 1)
    assert across == 1
    wide, high, _ = grid.block
    block = np.arange(wide * high)
    of_warps = [block[k : k + launch.WARP] for k in range(0, wide * high, launch.WARP)]
    tables = sum(bool((lanes % wide < launch.CROP_ROWS).any()) for lanes in of_warps)
    steps = mixed = 0
    for mask, box in zip(inside, boxes, strict=True):
        read = _columns_read(mask, box)
        runs = [_rows_read(box, first) for first in range(0, CROP_SIZE, launch.CROP_ROWS)]
        for first in range(0, len(runs), high):
            for lanes in of_warps:
                parts = [(runs[first + y], 2 * (lanes[lanes // wide == y] % wide)) for y in np.unique(lanes // wide)]
                for turns in zip(*(rows for rows, _ in parts), strict=True):
                    for step in range(max(map(len, turns))):
                        steps += 1
                        taking_part = zip(turns, parts, strict=True)
                        active = [(rows[step], own) for rows, (_, own) in taking_part if step < len(rows)]
                        mixed += any(read[row, own].any() for row, own in active)
                        mixed += any(read[row, own + 1].any() for row, own in active)
    warps = warps_of(grid)
    live = warps // capacity * len(boxes)
    return Executions(warps, {
        r"LDG\.E\.CONSTANT": warps + 5 * live + 2 * steps + 4 * mixed,
        r"PRMT R\d+, R\d+(\.reuse)?, 0x744\d": 12 * mixed,
        r"STS": 5 * tables * live // (warps // math.prod(grid.grid)),
        r"BAR": live,
        r"STG\.E desc": 3 * launch.CROP_ROWS * live,
        r"STG\.E\.U16": 0,  # of crops of odd size
        r"VI(ADD)?MNMX\.U32": 0,  # of images under 4 wide
    })  # fmt: skip


def _columns_read(mask: Array, box: Array) -> Array:
    """(h, size): whether any of the four pixels that a column of the crop reads in a row of the image is inside."""
    left, width = box[0], box[2] - box[0]
    base = np.floor(reference.source_positions(width, CROP_SIZE, CROP_SIZE)).astype(np.int64)
    first = np.clip(left + np.clip(np.minimum(base, width - 1) - 1, 0, width - 1), 0, mask.shape[1] - 4)
    before = np.pad(mask.astype(np.int32), ((0, 0), (1, 0))).cumsum(axis=1)
    return np.asarray(before[:, first + 4] > before[:, first])


def _rows_read(box: Array, first: int) -> list[list[int]]:
    """The rows of the image that a run of a crop's rows, the first of them `first`, reads, by row of the crop."""
    top, height = int(box[1]), int(box[3] - box[1])
    base = np.minimum(np.floor(reference.source_positions(height, CROP_SIZE, CROP_SIZE)).astype(np.int64), height - 1)
    latest = int(base[first]) - 2
    rows: list[list[int]] = []
    for own in base[first : first + launch.CROP_ROWS].tolist():
        rows.append([])
        while latest < own + 2:
            latest = max(latest + 1, own - 1)
            rows[-1].append(top + min(max(latest, 0), height - 1))
    return rows


def patch_masks(inside: Sequence[Array], boxes: Array, grid: int, capacity: int) -> Executions:
    """With bits, of regions as crop_regions takes them, for `grid` patches along a side of the crop."""
    blocks = launch.patch_masks(CROP_SIZE, grid, capacity, 1)
    looks = [_patch_looks(mask, box, grid) for mask, box in zip(inside, boxes, strict=True)]
    seen, found = (sum(counts) for counts in zip(*looks, strict=True))
    live, warps = len(boxes) * grid, warps_of(blocks)
    in_block = warps // math.prod(blocks.grid)
    turns, lines = live * -(-(CROP_SIZE // grid * grid) // launch.WARP), live * -(-grid // launch.WARP)
    return Executions(warps, {
        r"LDG": warps + 5 * in_block * live + seen,
        r"F2I\.TRUNC": turns + seen,
        r"ISETP\.GE\.AND P\d, PT, R\d+, 0x1,": turns,  # whether a patch has rows
        r"BAR": 2 * in_block * live,
        r"STS": lines,
        r"ATOMS": found,
        r"STG": lines,
    })  # fmt: skip


def _patch_looks(mask: Array, box: Array, grid: int) -> tuple[int, int]:
    """How often the warps of a region look for a pixel of the mask, and how many find one."""
    x1, y1, x2, y2 = box
    patch = CROP_SIZE // grid
    rows, columns = (reference.nearest_indices(int(side), CROP_SIZE)[: grid * patch] for side in (y2 - y1, x2 - x1))
    pixels = mask[y1:y2, x1:x2][rows][:, columns].reshape(grid, patch, -1)
    hit = pixels.any(axis=1)  # (grid, columns of the crop)
    looks = np.where(hit, pixels.argmax(axis=1) + 1, patch)
    first = range(0, looks.shape[1], launch.WARP)
    return int(np.maximum.reduceat(looks, first, axis=1).sum()), int(np.logical_or.reduceat(hit, first, axis=1).sum())


def compose(masks: Masks, class_probabilities: Array) -> Executions:
    """Of up to 112 masks; sums of high halves count as exact."""
    n, classes = class_probabilities.shape
    plan, side = launch.compose(n, classes, masks.output_size), launch.TILE
    samples = plan.steps * launch.STEP_MASKS // 8  # eight masks at a time
    real, tiles = -(-n // 8), plan.launch.grid[0]
    walks = np.array([_walk(masks, top) for top in range(0, masks.output_size[0], side)])
    powers, loads, mixes = walks.sum(axis=0) * real * tiles
    blocks, warps = math.prod(plan.launch.grid), warps_of(plan.launch)
    groups, close = 2 * blocks * plan.groups, _close_groups(masks, class_probabilities, plan.groups)
    return Executions(warps, {
        r"MUFU\.EX2": 4 * powers,
        MAYBE + r"LDG\.E\.U16": 8 * loads,
        r"FMUL R\d+, R\d+, -1\.44": 4 * mixes,
        r"@!?U?P\d LDG\.E\.CONSTANT": 4 * real * blocks + warps,
        r"SHFL\.IDX": 8 * side * real * blocks,
        r"STS \[": 2 * side * samples * blocks,
        r"VOTE\.ANY": groups,
        r"SHFL\.BFLY": 8 * close + 16 * warps,
        MAYBE + r"HMMA": 4 * launch.STEPS * groups + 8 * plan.steps * close,
        MAYBE + r"LDS R\d+, \[": 8 * launch.STEPS * groups + 16 * plan.steps * close + 8 * blocks,
    })  # fmt: skip


def _walk(masks: Masks, top: int) -> tuple[int, int, int]:
    """Rows of the image at which tiles from `top` on take sigmoids, and rows of the mask that they read and mix."""
    mask_h, image_h, height = masks.logits.shape[1], masks.image_size[0], masks.output_size[0]
    low, high, *_ = reference.linear_taps(image_h, height, height)
    own = np.minimum(np.arange(top, top + launch.TILE), height - 1)
    dense = high[own[-1]] - low[own[0]] < 2 * launch.TILE
    sparse = np.stack([low[own], high[own]], axis=1).reshape(-1)
    touched = np.arange(low[own[0]], high[own[-1]] + 1) if dense else sparse
    low, high, *_ = reference.linear_taps(mask_h, masks.padded_size[0], image_h)
    above = below = ahead = -1
    read = mixed = 0
    for row in touched:
        if (low[row], high[row]) == (above, below):
            continue
        for wanted in [high[row]] if low[row] == below else [low[row], high[row]]:
            read += wanted != ahead
            mixed += 1
            ahead = wanted
        above, below, ahead = low[row], high[row], min(high[row] + 1, mask_h - 1)
        read += 1
    return len(touched), read, mixed


def _close_groups(masks: Masks, class_probabilities: Array, groups: int) -> int:
    """How often a warp's 32 pixels have a group of 16 classes that may win, after those that its side has seen."""
    height, width = masks.output_size
    n, classes = class_probabilities.shape
    side, size = launch.TILE, launch.GROUP_CLASSES
    probabilities = reference.resample_masks(masks)
    columns = np.minimum(np.arange(-(-width // side) * side), width - 1)
    close = 0
    for top in range(0, height, side):
        pixels = probabilities[:, np.minimum(np.arange(top, top + side), height - 1)][:, :, columns]
        sums = np.full((pixels[0].size, groups * size), -np.inf, np.float32)
        sums[:, :classes] = pixels.reshape(n, -1).T @ class_probabilities
        best = sums.reshape(2, side // 2, -1, side, groups, size).max(axis=5)  # parts, rows, tiles, columns, groups
        for own in (best[..., 0::2], best[..., 1::2]):
            before = np.maximum.accumulate(own, axis=-1)[..., :-1]
            close += own[..., :1].size // (side * side // 2)  # the first group always may win
            close += (own[..., 1:] * 1.002 + 2.0**-26 >= before).any(axis=(1, 3)).sum()
    return int(close)
