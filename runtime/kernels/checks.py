"""Argument checks of both kernels modules; every failure is a ValueError of one line."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.masks import Masks, Size

Array = np.ndarray[Any, Any]


def array(name: str, value: object, dtype: type, shape: Sequence[int | str]) -> Array:
    """`value` as a C-contiguous array, if its dtype and shape match; a name in `shape` stands for any length."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be a NumPy array, not {type(value).__name__}")
    wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
    if value.dtype != dtype:
        raise ValueError(f"{name} has type {value.dtype}: give {np.dtype(dtype)} of shape {wanted}")
    fits = value.ndim == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {value.shape}: give {wanted}")
    return np.ascontiguousarray(value)


def image(value: object, name: str = "image") -> Array:
    """(h, w, 3) uint8, not empty."""
    checked = array(name, value, np.uint8, ("h", "w", 3))
    size(name, checked.shape[:2])
    return checked


def masks(value: Masks) -> Masks:
    """Logits (masks, h, w) float32 and their sizes; there may be zero masks, but no empty ones."""
    logits = array("mask_logits", value.logits, np.float32, ("masks", "h", "w"))
    size("mask_logits", logits.shape[1:])
    image_size, padded_size = sizes(value.image_size, value.padded_size)
    return Masks(logits, padded_size, image_size, size("output size", value.output_size))


def size(name: str, value: Sequence[int]) -> Size:
    """Two whole numbers of at least 1 whose product fits the 32-bit arithmetic of the kernels."""
    if len(value) != 2:
        raise ValueError(f"{name} must be (height, width), not {tuple(value)}")
    h, w = (int(v) for v in value)
    if h < 1 or w < 1 or (h, w) != tuple(value):
        raise ValueError(f"{name} is {tuple(value)}: height and width must be whole numbers of at least 1")
    if h * w > 2**31 - 1:
        raise ValueError(f"{name} is {h} x {w}: at most 2^31 - 1 pixels are supported")
    return h, w


def sizes(image_size: Sequence[int], padded_size: Sequence[int]) -> tuple[Size, Size]:
    """The image and its padded size, which must not be smaller."""
    inner, outer = size("image size", image_size), size("padded size", padded_size)
    if outer[0] < inner[0] or outer[1] < inner[1]:
        raise ValueError(f"padded size {outer} is smaller than the image size {inner}")
    return inner, outer


def colour(name: str, value: object) -> Array:
    """Three numbers 0..255 as float32."""
    colours = np.ascontiguousarray(value, dtype=np.float32)
    if colours.shape != (3,):
        raise ValueError(f"{name} has shape {colours.shape}: give one number for each of red, green and blue")
    return colours


def deviation(value: object) -> Array:
    """Three numbers above zero as float32."""
    deviations = colour("std", value)
    if not (deviations > 0).all():
        raise ValueError(f"std is {deviations.tolist()}: every channel must be above 0")
    return deviations


def image_of(value: object, masks: Masks) -> Array:
    """The image, (h, w, 3) uint8, that the masks belong to."""
    picture = image(value)
    if picture.shape[:2] != masks.image_size:
        raise ValueError(f"image is {picture.shape[0]} x {picture.shape[1]}, but the masks' is {masks.image_size}")
    return picture


def regions(boxes: object, indices: object, masks: Masks) -> tuple[Array, Array]:
    """Boxes (regions, 4) int32, inside the image and not empty, and the mask index of each, (regions,) int32."""
    checked = array("boxes", boxes, np.int32, ("regions", 4))
    chosen = array("indices", indices, np.int32, (len(checked),))
    h, w = masks.image_size
    x1, y1, x2, y2 = checked.T
    bad = (x1 < 0) | (y1 < 0) | (x2 > w) | (y2 > h) | (x2 <= x1) | (y2 <= y1)
    if bad.any():
        raise ValueError(f"box {checked[bad][0].tolist()} is empty or leaves the image of {w} x {h} pixels")
    if ((chosen < 0) | (chosen >= len(masks))).any():
        raise ValueError(f"indices range from {chosen.min()} to {chosen.max()}, but there are {len(masks)} masks")
    return checked, chosen


def probabilities(value: object, mask_count: int) -> Array:
    """(masks, classes) float32 with at least one class."""
    checked = array("class_probabilities", value, np.float32, (mask_count, "classes"))
    if checked.shape[1] == 0:
        raise ValueError("class_probabilities has no class: give at least one")
    return checked


def cropping(value: Cropping) -> Cropping:
    """Colours as float32, and a checked crop size."""
    fill, mean, std = colour("fill", value.fill), colour("mean", value.mean), deviation(value.std)
    return Cropping(float(value.threshold), bool(value.matting), fill, mean, std, crop_size(value.size))


def crop_size(value: int) -> int:
    """The side of a crop, at least 1."""
    if int(value) != value or not 1 <= value <= 4096:
        raise ValueError(f"crop_size is {value}: give a whole number from 1 to 4096")
    return int(value)


def patch_grid(value: int, side: int) -> int:
    """The patches along a side of a crop of `side` pixels, at least 1 and each of at least one pixel."""
    if int(value) != value or not 1 <= value <= side:
        raise ValueError(f"patch_grid is {value}: give a whole number from 1 to the crop's side, {side}")
    return int(value)
