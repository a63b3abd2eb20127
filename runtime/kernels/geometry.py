"""Sizes and boxes: the arithmetic of the published code on whole images, before any pixel is touched."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(h, w) with a shorter side of min_size, or less if the longer side would exceed max_size.

    Rounded half up and never below 1 pixel, as in detectron2's ResizeShortestEdge. Raises ValueError for sizes below 1.
    """
    if min(height, width, min_size, max_size) < 1:
        raise ValueError(f"image {height} x {width}, min_size {min_size}, max_size {max_size}: each must be 1 or more")
    scale = min_size / min(height, width)
    h, w = (min_size, scale * width) if height < width else (scale * height, min_size)
    if max(h, w) > max_size:
        shrink = max_size / max(h, w)
        h, w = h * shrink, w * shrink
    return max(int(h + 0.5), 1), max(int(w + 0.5), 1)


def padded_size(h: int, w: int, divisor: int) -> tuple[int, int]:
    """(Hp, Wp): both sides rounded up to a multiple of divisor. Raises ValueError for a divisor below 1."""
    if divisor < 1:
        raise ValueError(f"divisor is {divisor}: it must be 1 or more")
    return -(-h // divisor) * divisor, -(-w // divisor) * divisor


def expand_boxes(boxes: Array, ratio: float, image_size: tuple[int, int]) -> Array:
    """Boxes (V, 4) [x1, y1, x2, y2) scaled about their centres and clipped to the image (h, w); int32.

    In float32 and truncated toward zero before clipping, as in the published code. If nothing would be left (a ratio
    below 1 on a box of a few pixels, on which the published code fails), one pixel at the centre remains.
    """
    h, w = image_size
    half = np.float32(0.5)
    x1, y1, x2, y2 = np.asarray(boxes).reshape(-1, 4).astype(np.float32).T
    centre_x, centre_y = half * (x1 + x2), half * (y1 + y2)
    half_width, half_height = half * ((x2 - x1) * np.float32(ratio)), half * ((y2 - y1) * np.float32(ratio))
    corners = [centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height]
    left, top, right, bottom = (corner.astype(np.int32) for corner in corners)
    left, top = np.maximum(left, 0), np.maximum(top, 0)
    right, bottom = np.minimum(right, w), np.minimum(bottom, h)
    left, right = _at_least_one(left, right, centre_x, w)
    top, bottom = _at_least_one(top, bottom, centre_y, h)
    return np.stack([left, top, right, bottom], axis=1).astype(np.int32)


def _at_least_one(first: Array, last: Array, centre: Array, size: int) -> tuple[Array, Array]:
    empty = last <= first
    pixel = np.clip(centre.astype(np.int32), 0, size - 1)
    return np.where(empty, pixel, first), np.where(empty, pixel + 1, last)
