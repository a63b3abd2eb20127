"""Arguments of the CUDA kernels' face: its types, the checks of arrays, and the structs made from them.

Every failure is a ValueError of one line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from vocabseg.runtime.kernels import checks
from vocabseg.runtime.kernels.device import launch as cuda_launch
from vocabseg.runtime.kernels.device.launch import packed
from vocabseg.runtime.masks import Masks

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.arrays import DeviceArray

FLOATS = (np.float32, np.float16)


@dataclass(frozen=True)
class CropSource:
    """One image's regions, for crop_regions.

    Attributes:
        resized: (h, w, 3) uint8 RGB.
        masks: their logits float32 or float16, and image size (h, w).
        bits: (N, h, ceil(w / 32)) uint32 that region_boxes made from the logits, or None; matting needs none.
        crop_boxes, order, count: (N, 4), (N,), (1,) int32 of select_regions.
        first: the crop of the first region; the others follow.
    """

    resized: "DeviceArray"
    masks: Masks
    bits: "DeviceArray | None"
    crop_boxes: "DeviceArray"
    order: "DeviceArray"
    count: "DeviceArray"
    first: int


class Ensemble(Protocol):
    """How query and region evidence are combined; a bundle's `EnsembleSection`."""

    @property
    def enabled(self) -> bool: ...
    @property
    def weight(self) -> float: ...
    @property
    def temperature(self) -> float: ...


class Side(NamedTuple):
    """What is compared: embeddings (n, D) float32 or float16 of any norm, and text (R, D) float32 of unit length.

    first (K + 1,) int32: class k has the texts first[k] to first[k + 1], the last class of a query is "no object"; None
    if every class has one text.
    """

    embeddings: "DeviceArray"
    text: "DeviceArray"
    first: "DeviceArray | None" = None


def array(name: str, value: Any, dtypes: Any, shape: Sequence[int | str]) -> tuple[int, ...]:
    """The shape of a device array, if it and the dtype match; a name in `shape` stands for any length."""
    wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
    if not hasattr(value, "pointer"):
        raise ValueError(f"{name} must be a DeviceArray of shape {wanted}, not {type(value).__name__}")
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if value.dtype not in [np.dtype(dtype) for dtype in dtypes]:
        kinds = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
        raise ValueError(f"{name} has type {value.dtype}: give {kinds} of shape {wanted}")
    fits = len(value.shape) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {value.shape}: give {wanted}")
    return tuple(value.shape)


def mask_shape(masks: Masks) -> tuple[int, np.ndarray]:
    """How many masks, and the MaskShape."""
    n, h, w = array("mask_logits", masks.logits, FLOATS, ("masks", "h", "w"))
    if n > cuda_launch.MOST_MASKS:
        raise ValueError(f"mask_logits holds {n} masks: at most {cuda_launch.MOST_MASKS} are supported")
    checks.size("mask_logits", (h, w))
    image_size, padded_size = checks.sizes(masks.image_size, masks.padded_size)
    return n, packed(cuda_launch.MASK_SHAPE, mask_size=(h, w), padded_size=padded_size, image_size=image_size)


def crop_source(source: CropSource) -> np.ndarray:
    h, w, _ = array("resized", source.resized, np.uint8, ("h", "w", 3))
    if source.masks.image_size != (h, w):
        raise ValueError(f"resized is {h} x {w}, but the masks' image size is {source.masks.image_size}")
    n, shape = mask_shape(source.masks)
    if h * w > cuda_launch.MOST_PIXELS:
        raise ValueError(f"resized is {h} x {w}: at most {cuda_launch.MOST_PIXELS} pixels are supported")
    if source.bits is not None:
        array("bits", source.bits, np.uint32, (n, h, -(-w // 32)))
    (capacity,) = array("order", source.order, np.int32, ("regions",))
    array("crop_boxes", source.crop_boxes, np.int32, (capacity, 4))
    array("count", source.count, np.int32, (1,))
    if source.first < 0:
        raise ValueError(f"first is {source.first}: the number of a crop must be 0 or more")
    return packed(
        cuda_launch.CROP_SOURCE,
        image=source.resized.pointer,
        logits=source.masks.logits.pointer,
        bits=pointer(source.bits),
        boxes=source.crop_boxes.pointer,
        order=source.order.pointer,
        count=source.count.pointer,
        shape=shape,
        half=source.masks.logits.dtype == np.float16,
        first=source.first,
        capacity=capacity,
    )


def side_struct(name: str, side: Side, classes: int) -> np.ndarray:
    """The SIDE that similarity takes, with text embeddings for `classes` classes."""
    embeddings, text, first = side
    texts: int | str = classes
    if first is not None:
        array(f"{name} first", first, np.int32, (classes + 1,))
        texts = "texts"
    rows, depth = array(f"{name} embeddings", embeddings, FLOATS, ("rows", "depth"))
    count, _ = array(f"{name} text", text, np.float32, (texts, depth))
    return packed(
        cuda_launch.SIDE,
        embeddings=embeddings.pointer,
        texts=text.pointer,
        rows=rows,
        texts_count=count,
        depth=depth,
        half=embeddings.dtype == np.float16,
    )


def pointer(array: Any) -> int:
    return 0 if array is None else array.pointer


def kind(array: Any) -> str:
    return "f16" if array.dtype == np.float16 else "f32"
