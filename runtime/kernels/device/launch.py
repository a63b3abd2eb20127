"""How the CUDA kernels are launched: grids, shared memory, and the structs that they take by value.

Constants and structs mirror those of the *.cuh headers; a test compares the structs' sizes.
"""

import math
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

Size = tuple[int, int]

WARP = 32
RESIZE_BLOCK = (32, 8)  # columns and rows of the network input
BAND_ROWS, GROUP_WORDS, BOX_WARPS = 32, 64, 8
CROP_ROWS, CROP_RUNS, CROP_THREADS, CROP_IMAGES = 16, 8, 224, 16
SIDE_ROWS, SIDE_TEXTS, SIDE_THREADS, ROW_THREADS = 8, 64, 128, 256
USABLE_THREADS = 256
SHARING_THREADS = 256
MOST_NEAR = 4096  # masks that are compared with each other: a byte for each pair
TILE, COMPOSE_THREADS, STEP_MASKS, STEPS, GROUP_CLASSES = 8, 128, 16, 7, 16
MOST_MASKS = 65535  # most blocks of a grid in its second and third dimension
MOST_PIXELS = 2**32 // 3  # of an image that crops are cut from: its bytes are counted in 32 bits


def _struct(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    return np.dtype(list(fields), align=True)


RESIZE_SHAPE = _struct(("in_size", "i4", 2), ("size", "i4", 2), ("padded_size", "i4", 2))
RESIZE_TABLE = _struct(("spans", "u8"), ("weights", "u8"), ("capacity", "i4"))
COLOURS = _struct(("mean", "f4", 3), ("deviation", "f4", 3))
MASK_SHAPE = _struct(("mask_size", "i4", 2), ("padded_size", "i4", 2), ("image_size", "i4", 2))
CROP_SOURCE = _struct(
    *((name, "u8") for name in ("image", "logits", "bits", "boxes", "order", "count")),
    ("shape", MASK_SHAPE),
    *((name, "i4") for name in ("half", "first", "capacity")),
)
CROP_SETTINGS = _struct(
    ("fill", "f4", 3), ("background", "f4", 3), ("gain", "f4", 3), ("limit", "f4"),
    ("matting", "i4"), ("size", "i4"), ("crops", "i4"),
)  # fmt: skip
PATCH_SETTINGS = _struct(("limit", "f4"), ("size", "i4"), ("across", "i4"), ("crops", "i4"))
SIDE = _struct(
    *((name, "u8") for name in ("embeddings", "texts", "logits")),
    *((name, "i4") for name in ("rows", "texts_count", "depth", "half")),
)
ENSEMBLE = _struct(
    *((name, "u8") for name in ("query", "region", "seen", "order", "count")),
    ("rows", "i4"), ("classes", "i4"), ("weight", "f4"),
)  # fmt: skip
CLASS_TABLE = _struct(("fragments", "u8"), ("groups", "i4"), ("steps", "i4"))
COMPOSE_SHAPE = _struct(("mask", MASK_SHAPE), ("output_size", "i4", 2), ("masks", "i4"), ("classes", "i4"))


class Launch(NamedTuple):
    """Blocks, threads per block, and dynamic shared memory per block in bytes."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0


class Packed(bytes):
    """A struct as a kernel takes it by value, aligned to `alignment` bytes."""

    alignment: int


def packed(dtype: np.dtype[Any], **values: Any) -> Packed:
    """A struct of dtype: of each field a number, a sequence of them, or a Packed; fields not given are 0."""
    layout, fields = _layout(dtype)
    flat: list[Any] = []
    for name, nothing in fields.items():
        value = values.pop(name, nothing)
        if isinstance(nothing, list):
            flat.extend(value)
        else:
            flat.append(value)
    if values:
        raise TypeError(f"the struct has no field {', '.join(values)}")
    result = Packed(layout.pack(*flat))
    result.alignment = dtype.alignment
    return result


@cache
def _layout(dtype: np.dtype[Any]) -> tuple[struct.Struct, dict[str, Any]]:
    """How a struct is packed, and the value of each field that is not given."""
    assert dtype.fields is not None
    text, end, fields = "<", 0, dict[str, Any]()
    for name, (field, place, *_) in dtype.fields.items():
        base, shape = field.subdtype or (field, ())
        fields[name] = [0] * shape[0] if shape else b"" if base.fields else 0
        code = f"{base.itemsize}s" if base.fields else {"i4": "i", "f4": "f", "u8": "Q"}[base.str[1:]]
        text += f"{place - end}x" + code * math.prod(shape)
        end = place + field.itemsize
    return struct.Struct(f"{text}{dtype.itemsize - end}x"), fields


def threads(count: int, block: int = 128) -> Launch:
    """At least `count` threads in one dimension."""
    return Launch((max(_ceil(count, block), 1), 1, 1), (block, 1, 1))


def triangle_capacity(in_size: int, out_size: int) -> int:
    """pixel_math.h's triangle_capacity: the most source pixels that any output pixel reads."""
    return math.ceil(max(in_size / out_size, 1.0)) * 2 + 1


def resize(padded: Size) -> Launch:
    """A thread for each pixel of the network input."""
    width, height = RESIZE_BLOCK
    return Launch((_ceil(padded[1], width), _ceil(padded[0], height), 1), (width, height, 1))


def region_boxes(masks: int, image: Size) -> Launch:
    """A block for 32 rows and up to 64 words of a mask, of as many warps as share the words most evenly."""
    words = _ceil(image[1], WARP)
    turns = _ceil(min(words, GROUP_WORDS), BOX_WARPS)
    warps = _ceil(min(words, GROUP_WORDS), turns)
    return Launch((_ceil(words, GROUP_WORDS), _ceil(image[0], BAND_ROWS), masks), (warps * WARP, 1, 1))


def crop_regions(size: int, regions: int, images: int) -> tuple[Launch, int]:
    """Blocks of pairs of columns and runs of 16 rows; and how many blocks lie side by side."""
    pairs = _ceil(size, 2)
    across = _ceil(pairs, CROP_THREADS // 2)
    wide = _ceil(pairs, across)
    runs = _ceil(size, CROP_ROWS)
    high = max(1, min(CROP_RUNS, runs, CROP_THREADS // wide))
    return Launch((across * _ceil(runs, high), regions, images), (wide, high, 1)), across


def patch_masks(size: int, across: int, regions: int, images: int) -> Launch:
    """A block for each row of patches, with a thread per column of the crop and a number per patch."""
    columns = min(CROP_THREADS, _ceil(size // across * across, WARP) * WARP)
    return Launch((across, regions, images), (columns, 1, 1), 4 * across)


def similarity(query_rows: int, region_rows: int, texts: int) -> Launch:
    """Blocks of 8 embeddings and 64 texts, of both sides."""
    rows = _ceil(max(query_rows, region_rows, 1), SIDE_ROWS)
    return Launch((_ceil(texts, SIDE_TEXTS), rows, 2), (SIDE_THREADS, 1, 1))


def rows(count: int) -> Launch:
    """A block for each row of logits."""
    return Launch((count, 1, 1), (ROW_THREADS, 1, 1))


class ComposePlan(NamedTuple):
    """How compose is launched: its table of class probabilities, and whether masks are processed in chunks."""

    launch: Launch
    prepare: Launch
    groups: int
    steps: int
    many: bool

    @property
    def table_bytes(self) -> int:
        """16 bytes per lane, for high and low halves."""
        return self.groups * self.steps * (GROUP_CLASSES // 16) * WARP * 16 * 2


def compose(masks: int, classes: int, output: Size) -> ComposePlan:
    """A block for each tile of 8 x 8 pixels."""
    steps, groups = _ceil(masks, STEP_MASKS), _ceil(classes, GROUP_CLASSES)
    shared = TILE * TILE * (STEPS * STEP_MASKS + 8) * 2 * 2
    grid = (_ceil(output[1], TILE), _ceil(output[0], TILE), 1)
    prepare = threads(groups * steps * (GROUP_CLASSES // 16) * WARP)
    return ComposePlan(Launch(grid, (COMPOSE_THREADS, 1, 1), shared), prepare, groups, steps, steps > STEPS)


def find_unusable(count: int) -> Launch:
    """Enough blocks to fill any GPU; each thread takes every so many-th value."""
    return Launch((min(max(_ceil(count, 8 * USABLE_THREADS), 1), 1024), 1, 1), (USABLE_THREADS, 1, 1))


def sharing(blocks: int) -> Launch:
    """A block for each mask or region, or one for all."""
    return Launch((blocks, 1, 1), (SHARING_THREADS, 1, 1))


def near_masks(masks: int) -> Launch:
    """A warp for each pair of masks."""
    return Launch((masks, _ceil(masks, SHARING_THREADS // WARP), 1), (SHARING_THREADS, 1, 1))


def source_struct(sources: Sequence[Packed]) -> bytes:
    """The CropSources that a launch takes: up to 16 images, the others empty."""
    return b"".join(sources).ljust(CROP_IMAGES * CROP_SOURCE.itemsize, b"\0")


def _ceil(count: int, size: int) -> int:
    return -(-count // size)
