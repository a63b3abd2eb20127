"""COCO's forms of a mask, polygons and run lengths, compressed or not, checked before pycocotools has them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

MaskSide = Annotated[int, msgspec.Meta(ge=1, le=65535)]
# Pixels along the outline of one polygon, and from the image's corner to its points: COCO's code takes memory and time
# for each.
LONGEST_OUTLINE = 1_000_000


class RunLengths(msgspec.Struct, frozen=True):
    """A mask as run lengths down its columns, or as COCO's text of these; `size` is (H, W)."""

    size: tuple[MaskSide, MaskSide]
    counts: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]] | str


def compressed(segmentation: Sequence[Sequence[float]] | RunLengths, size: tuple[int, int]) -> dict[str, object]:
    """Any of COCO's three forms of a mask of this size (H, W) as compressed run lengths with text counts.

    Raises ValueError, worded to follow "an object", for masks that pycocotools would hang or take gigabytes on.
    """
    from pycocotools import mask as coco_mask

    height, width = size
    if isinstance(segmentation, RunLengths):
        counts = segmentation.counts
        runs = decode_counts(counts) if isinstance(counts, str) else np.array(counts, np.int64)
        if segmentation.size != size or runs.sum() != height * width or runs.min(initial=0) < 0:
            raise ValueError(f"whose run lengths do not fill its {width} x {height} pixels")
        if isinstance(counts, str):
            return {"size": [height, width], "counts": counts}
        encoded = coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
    else:
        for polygon in segmentation or [[]]:
            _check_polygon(polygon)
        encoded = coco_mask.merge(coco_mask.frPyObjects([list(polygon) for polygon in segmentation], height, width))
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def decode_counts(text: str) -> np.ndarray:
    """The run lengths, (N,) int64, in COCO's text: groups of five bits as characters from 48 on.

    Raises ValueError, worded as for `compressed`, for any other text.
    """
    codes = np.array([ord(char) - 48 for char in text], np.int64)
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("whose run lengths are no such text")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: longer than any image
        raise ValueError("whose run lengths are no such text")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << 5 * places, starts)
    values = np.where(codes[ends] & 16, values - (1 << 5 * lengths), values)
    # From the fourth on, each is the difference to the last but one.
    for parity in (1, 2):
        values[parity::2] = np.cumsum(values[parity::2])
    return values


def _check_polygon(polygon: Sequence[float]) -> None:
    points = np.array(polygon, np.float64)
    if points.size < 6 or points.size % 2:
        raise ValueError(f"with a polygon of {points.size} numbers, where three pairs or more are due")
    points = points.reshape(-1, 2)
    outline = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if not (np.abs(points).max() <= LONGEST_OUTLINE and outline <= LONGEST_OUTLINE):
        raise ValueError(f"with a polygon that is {outline:.3g} pixels long")


def packed(mask: Mapping[str, Any]) -> dict[str, Any]:
    """The same run lengths with counts as bytes, as pycocotools takes them."""
    return {"size": mask["size"], "counts": mask["counts"].encode("ascii")}


def mask_area(mask: Mapping[str, Any]) -> float:
    """Pixels of a mask in compressed run lengths."""
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(packed(mask)))
