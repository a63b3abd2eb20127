"""Panoptic segments, instances and run-length encoding: the published rules, one mask in memory at a time."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from vocabseg.runtime.masks import Masks

# Memory for resampled masks at a time.
CHUNK_BYTES = 64 * 2**20


class MaskRows(Protocol):
    """Mask probabilities (N, H, W) float32 that are yielded one by one."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def rows(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """The masks (H, W) of `indices`, in that order; each is valid until the next one is requested."""
        ...


@dataclass(frozen=True, eq=False)
class ResampledMasks:
    """Masks as `MaskRows` of the output size, computed a few at a time by the kernels."""

    masks: Masks
    kernels: ModuleType

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.masks), *self.masks.output_size)

    def rows(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        wanted = np.fromiter(indices, np.int64)
        height, width = self.masks.output_size
        step = max(1, CHUNK_BYTES // (4 * height * width))
        for start in range(0, len(wanted), step):
            yield from self.kernels.resample_masks(self.masks[wanted[start : start + step]])


def panoptic_segments(
    class_probabilities: np.ndarray,
    masks: np.ndarray | MaskRows,
    things: Collection[int],
    object_mask_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    void: int | None = None,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Merge N masks into segments that do not overlap (MaskFormer, arXiv 2107.06278, section 3.4).

    Args:
        class_probabilities: (N, K + 1) float; the last column is "no object".
        masks: (N, H, W) mask probabilities in 0..1.
        things: the classes whose regions stay separate; regions of any other class become one segment.
        object_mask_threshold: a mask takes part if its best class is not "no object" and above this probability.
        overlap_threshold: a segment is dropped if it keeps less than this share of its mask (probability >= 0.5), the
            rest having gone to stronger masks.
        void: a class whose masks take part, but become no segment.

    Returns the segmentation, (H, W) int32 with 0 where there is no segment, and the segments in the order of their ids,
    which start at 1: {"id", "isthing", "category_id", "score": the highest probability among its masks, "area":
    pixels}. Raises ValueError if probabilities and masks differ in number.
    """
    probabilities, size = _matched(class_probabilities, masks)
    no_object = probabilities.shape[1] - 1
    labels = probabilities.argmax(1)
    scores = probabilities.max(1)
    kept = np.flatnonzero((labels != no_object) & (scores > object_mask_threshold))
    best = np.full(size, -1, np.float32)
    owner = np.zeros(size, np.int32)
    areas_before = []
    for place, mask in enumerate(_rows(masks, kept)):
        areas_before.append(np.count_nonzero(mask >= 0.5))
        weighted = scores[kept[place]] * mask
        stronger = weighted > best
        np.copyto(best, weighted, where=stronger)
        np.copyto(owner, np.int32(place), where=stronger)
    if not len(kept):
        return np.zeros(size, np.int32), []
    areas = np.bincount(owner.ravel(), minlength=len(kept))
    segments: list[dict[str, Any]] = []
    stuff: dict[int, int] = {}
    segment_of = np.zeros(len(kept), np.int32)
    for place, (area, area_before) in enumerate(zip(areas.tolist(), areas_before, strict=True)):
        if area == 0 or area_before == 0 or area / area_before < overlap_threshold:
            continue
        category, score = int(labels[kept[place]]), float(scores[kept[place]])
        if category == void:
            continue
        if category in stuff:
            segment_of[place] = stuff[category]
            merged = segments[stuff[category] - 1]
            merged["area"] += area
            merged["score"] = max(merged["score"], score)
            continue
        segment_of[place] = len(segments) + 1
        isthing = category in things
        if not isthing:
            stuff[category] = len(segments) + 1
        entry = {"id": len(segments) + 1, "isthing": isthing, "category_id": category, "score": score, "area": area}
        segments.append(entry)
    return segment_of[owner], segments


@dataclass(frozen=True, eq=False)
class Instance:
    """One object. Attributes:

    class_index: index into the classes.
    score: class probability times the mean mask probability inside.
    box: (x1, y1, x2, y2) pixels, tight, x2 and y2 exclusive.
    inside: (y2 - y1, x2 - x1) bool, the mask within the box.
    size: (H, W) of the image.
    """

    class_index: int
    score: float
    box: tuple[int, int, int, int]
    inside: np.ndarray
    size: tuple[int, int]

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: the full-size mask, created on each access."""
        x1, y1, x2, y2 = self.box
        full = np.zeros(self.size, bool)
        full[y1:y2, x1:x2] = self.inside
        return full


def instances(
    class_probabilities: np.ndarray,
    masks: np.ndarray | MaskRows,
    things: Collection[int] | None = None,
    top_k: int = 100,
    overlap_threshold: float | None = None,
) -> list[Instance]:
    """The `top_k` most probable pairs of mask and class, as objects, best score first (MaskFormer's instance rule).

    Args:
        class_probabilities: (N, K) float, without "no object".
        masks: (N, H, W) mask probabilities in 0..1.
        things: pairs of other classes are dropped after the `top_k` are selected; None keeps every class.
        top_k: how many pairs take part. One mask may be an object of several classes.
        overlap_threshold: an object is dropped if its intersection over union with a better one of the same class
            exceeds this; None, the published rule, keeps all.

    An object's mask is where the probability is above 0.5; objects without such a pixel are omitted. Its score is the
    class probability times the mean mask probability inside. Raises ValueError if probabilities and masks differ in
    number.
    """
    probabilities, size = _matched(class_probabilities, masks)
    flat = probabilities.ravel()
    pairs = np.argsort(-flat, kind="stable")[: max(0, top_k)]
    queries, categories = np.divmod(pairs, max(1, probabilities.shape[1]))
    if things is not None:
        chosen = np.isin(categories, list(things))
        queries, categories = queries[chosen], categories[chosen]
    wanted = np.unique(queries)
    found = []
    for query, mask in zip(wanted.tolist(), _rows(masks, wanted), strict=True):
        box = _tight_box(mask > 0.5)
        if box is None:
            continue
        x1, y1, x2, y2 = box
        part = mask[y1:y2, x1:x2]
        inside = part > 0.5
        quality = float(part[inside].mean(dtype=np.float64))
        for category in categories[queries == query].tolist():
            score = float(probabilities[query, category]) * quality
            found.append(Instance(category, score, box, inside, size))
    found.sort(key=lambda instance: -instance.score)
    return found if overlap_threshold is None else _without_duplicates(found, overlap_threshold)


def _without_duplicates(found: list[Instance], overlap_threshold: float) -> list[Instance]:
    kept: list[Instance] = []
    for one in found:
        if all(one.class_index != other.class_index or _overlap(one, other) <= overlap_threshold for other in kept):
            kept.append(one)
    return kept


def _overlap(one: Instance, other: Instance) -> float:
    """Intersection over union of two masks."""
    corners = [*map(max, one.box[:2], other.box[:2]), *map(min, one.box[2:], other.box[2:])]
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        return 0.0
    parts = [
        each.inside[y1 - each.box[1] : y2 - each.box[1], x1 - each.box[0] : x2 - each.box[0]] for each in (one, other)
    ]
    shared = int(np.count_nonzero(parts[0] & parts[1]))
    return shared / (int(np.count_nonzero(one.inside)) + int(np.count_nonzero(other.inside)) - shared)


def rle_encode(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run-length encoding of a bool mask (H, W): {"size": [H, W], "counts": ASCII text}."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(length) for length in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def rle_decode(encoded: dict[str, Any]) -> np.ndarray:
    """The bool mask (H, W) that `rle_encode` encoded."""
    from pycocotools import mask as coco

    return coco.decode({"size": encoded["size"], "counts": encoded["counts"].encode("ascii")}).astype(bool)


def coco_box(mask: np.ndarray) -> list[int]:
    """COCO's [x, y, width, height] in pixels, tight around a bool mask (H, W); zeros if it is empty."""
    x1, y1, x2, y2 = _tight_box(mask) or (0, 0, 0, 0)
    return [x1, y1, x2 - x1, y2 - y1]


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    return int(columns[0]), top, int(columns[-1]) + 1, bottom


def _matched(class_probabilities: np.ndarray, masks: np.ndarray | MaskRows) -> tuple[np.ndarray, tuple[int, int]]:
    probabilities = np.asarray(class_probabilities, np.float32)
    if len(masks.shape) != 3 or probabilities.ndim != 2 or len(probabilities) != masks.shape[0]:
        raise ValueError(
            f"class probabilities {probabilities.shape} and masks {tuple(masks.shape)} do not match: "
            "give (N, classes) and (N, H, W)"
        )
    return probabilities, (masks.shape[1], masks.shape[2])


def _rows(masks: np.ndarray | MaskRows, indices: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    if isinstance(masks, np.ndarray):
        return (masks[index].astype(np.float32, copy=False) for index in indices)
    return masks.rows(indices)
