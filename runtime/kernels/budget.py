"""Which masks get a crop of their own: the specification of the region budget, in plain NumPy, for host and device."""

import numpy as np

from vocabseg.runtime.kernels.checks import Array
from vocabseg.runtime.kernels.reference import sigmoid, threshold_logit

# How many bits are set in each 16-bit number; NumPy's own bitwise_count came with version 2.
ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, dtype=np.uint8)


def mask_confidences(logits: Array, threshold: float) -> Array:
    """The mean probability over the pixels of each mask that exceed the threshold: (N, h, w) float32 -> (N,) float32.

    The pixels are those of the mask logits, not of the image; 0 where none exceeds it.
    """
    inside = logits > threshold_logit(threshold)
    sums = np.where(inside, sigmoid(logits), np.float32(0)).sum(axis=(1, 2), dtype=np.float64)
    return (sums / np.maximum(inside.sum(axis=(1, 2)), 1)).astype(np.float32)


def choose_leaders(
    boxes: Array,
    areas: Array,
    objectness: Array,
    bits: Array | None,
    share_iou: float | None,
    min_objectness: float,
    max_regions: int | None,
) -> Array:
    """The mask whose crop stands for each mask: itself, one that it overlaps, or -1 for none.

    boxes (N, 4) and areas (N,) int32 as of region_boxes; objectness (N,) float32; bits (N, h, words) uint32 as of
    region_bits, needed with share_iou. Masks are taken by falling objectness, the first of equal ones first; each that
    is not yet spoken for leads all those after it whose IoU with it is share_iou or more. Empty masks, those below
    min_objectness except the best, and those that are not spoken for after max_regions leaders have none.
    Returns (N,) int32.
    """
    leaders = np.full(len(areas), -1, np.int32)
    order = np.argsort(-objectness, kind="stable")
    order = order[areas[order] > 0]
    waiting = np.zeros(len(areas), bool)
    waiting[order] = objectness[order] >= np.float32(min_objectness)
    waiting[order[:1]] = True
    count = 0
    for mask in order.tolist():
        if not waiting[mask]:
            continue
        if count == max_regions:
            break
        count += 1
        led = np.array([mask])
        if share_iou is not None:
            assert bits is not None
            others = np.flatnonzero(waiting)
            led = others[_overlapping(mask, others, boxes, areas, bits, share_iou)]
        leaders[led], waiting[led] = mask, False
    return leaders


def may_overlap(one: Array | int, other: Array, boxes: Array, areas: Array, share_iou: float) -> Array:
    """Flags of the pairs of masks, by number, whose IoU can be share_iou or more as far as boxes and areas tell.

    No intersection is larger than a mask or the boxes' common part, and no union smaller than a mask.
    """
    mine, theirs = areas[one].astype(np.int64), areas[other].astype(np.int64)
    corner, end = np.maximum(boxes[one, :2], boxes[other, :2]), np.minimum(boxes[one, 2:], boxes[other, 2:])
    common = np.maximum(end.astype(np.int64) - corner, 0).prod(axis=1)
    found: Array = np.minimum(np.minimum(mine, theirs), common) >= share_iou * np.maximum(mine, theirs)
    return found


def _overlapping(mask: int, others: Array, boxes: Array, areas: Array, bits: Array, share_iou: float) -> Array:
    """Flags of those of `others` whose IoU with `mask` is share_iou or more."""
    found = may_overlap(mask, others, boxes, areas, share_iou)
    left, top, right, bottom = boxes[mask].tolist()
    part = np.s_[top:bottom, left // 32 : -(-right // 32)]
    for place in np.flatnonzero(found).tolist():
        shared = bits[mask][part] & bits[others[place]][part]
        intersection = int(ONES[np.ascontiguousarray(shared).view(np.uint16)].sum(dtype=np.int64))
        found[place] = intersection >= share_iou * (int(areas[mask]) + int(areas[others[place]]) - intersection)
    return found
