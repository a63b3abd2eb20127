"""Arguments of the CUDA kernels' face: its types, the checks of arrays, and the structs made from them.

Every failure is a ValueError of one line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from vocabseg.runtime.kernels import checks
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.kernels.device import launch as cuda_launch
from vocabseg.runtime.kernels.device.launch import Packed, packed
from vocabseg.runtime.masks import Masks, Size

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
    @property
    def seen_rule(self) -> bool: ...


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
    given = getattr(value, "shape", ())
    if len(given) == len(shape) and value.dtype in (dtypes if isinstance(dtypes, tuple) else (dtypes,)):
        for want, have in zip(shape, given, strict=True):
            if want != have and not isinstance(want, str):
                break
        else:
            if hasattr(value, "pointer"):
                return given  # type: ignore[no-any-return]
    raise ValueError(_unfit(name, value, dtypes, shape))


def _unfit(name: str, value: Any, dtypes: Any, shape: Sequence[int | str]) -> str:
    """Why `array` refuses it."""
    wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
    if not hasattr(value, "pointer"):
        return f"{name} must be a DeviceArray of shape {wanted}, not {type(value).__name__}"
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if value.dtype not in dtypes:
        kinds = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
        return f"{name} has type {value.dtype}: give {kinds} of shape {wanted}"
    return f"{name} has shape {value.shape}: give {wanted}"


def mask_shape(masks: Masks) -> tuple[int, Packed]:
    """How many masks, and the MaskShape."""
    n, h, w = array("mask_logits", masks.logits, FLOATS, ("masks", "h", "w"))
    if n > cuda_launch.MOST_MASKS:
        raise ValueError(f"mask_logits holds {n} masks: at most {cuda_launch.MOST_MASKS} are supported")
    return n, _mask_shape((h, w), tuple(masks.padded_size), tuple(masks.image_size))


@lru_cache(maxsize=256)
def _mask_shape(mask_size: Size, padded_size: Size, image_size: Size) -> Packed:
    checks.size("mask_logits", mask_size)
    image_size, padded_size = checks.sizes(image_size, padded_size)
    return packed(cuda_launch.MASK_SHAPE, mask_size=mask_size, padded_size=padded_size, image_size=image_size)


def crop_source(source: CropSource) -> Packed:
    """The CROP_SOURCE of regions that all fit."""
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


def crop_launches(sources: Sequence[CropSource], cropping: Cropping) -> Iterator[tuple[str, list[CropSource], int]]:
    """The launches that cut regions: whether they read "bits" or "logits", up to 16 images, and their most regions."""
    for given in ("bits", "logits"):
        chosen = [s for s in sources if (given == "bits") == (s.bits is not None and not cropping.matting)]
        chosen = [source for source in chosen if len(source.order)]
        for k in range(0, len(chosen), cuda_launch.CROP_IMAGES):
            part = chosen[k : k + cuda_launch.CROP_IMAGES]
            yield given, part, max(len(source.order) for source in part)


def side_sizes(name: str, side: Side | None, classes: int) -> tuple[int, int]:
    """How many embeddings are compared with how many text embeddings of `classes` classes; (0, 0) for None."""
    if side is None:
        return 0, 0
    texts: int | str = classes
    if side.first is not None:
        array(f"{name} first", side.first, np.int32, (classes + 1,))
        texts = "texts"
    rows, depth = array(f"{name} embeddings", side.embeddings, FLOATS, ("rows", "depth"))
    count, _ = array(f"{name} text", side.text, np.float32, (texts, depth))
    return rows, count


def side_struct(side: Side | None, logits: int) -> Packed:
    """The SIDE that similarity takes, with the address of its logits."""
    if side is None:
        return packed(cuda_launch.SIDE)
    embeddings, text, _ = side
    return packed(
        cuda_launch.SIDE,
        embeddings=embeddings.pointer,
        texts=text.pointer,
        logits=logits,
        rows=embeddings.shape[0],
        texts_count=text.shape[0],
        depth=text.shape[1],
        half=embeddings.dtype == np.float16,
    )


def pointer(array: Any) -> int:
    return 0 if array is None else array.pointer


def kind(array: Any) -> str:
    return "f16" if array.dtype == np.float16 else "f32"
