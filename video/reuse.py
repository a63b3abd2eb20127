"""Region embeddings of earlier frames, for regions whose mask and pixels have stayed the same."""

from dataclasses import dataclass

import numpy as np

from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.kernels.reference import threshold_logit
from vocabseg.runtime.segmenter.host_stages import HostProposals

# Least overlap of the masks (intersection over union), and greatest change of the pixels under them (root mean square,
# of 255), measured by `python -m vocabseg.benchmarks.video_bench`.
MIN_IOU, MAX_CHANGE = 0.9, 8.0


@dataclass(eq=False)
class Seen:
    """Regions of the last frame, and the masks and pixels that their embeddings were computed from.

    `pixels` are of the frame in which a region was encoded, not of the last one: slow changes add up and are noticed.
    """

    proposals: HostProposals
    queries: np.ndarray
    masks: np.ndarray
    pixels: list[np.ndarray]


class EmbeddingReuse:
    """Says which regions of a frame are encoded already: `known` of `Segmenter.segment_sequence`, for one video.

    A region takes the embedding of the region of the frame before whose mask it overlaps most, by `min_iou` or more, if
    the pixels that both masks cover have changed by `max_change` of 255 at most (root mean square). Masks and pixels
    are compared at the resolution of the mask logits, so that a sensor's noise is averaged.

    Attributes:
        regions, reused: how many there were, and how many of them were not encoded.
    """

    def __init__(self, mask_threshold: float, min_iou: float = MIN_IOU, max_change: float = MAX_CHANGE):
        """Raises ConfigurationError for an overlap outside 0..1, and a change below 0."""
        if not (0 < min_iou <= 1 and max_change >= 0):
            raise ConfigurationError(f"reuse at an overlap of {min_iou} and a change of {max_change}: 0..1, 0 or more")
        self.min_iou, self.max_change = min_iou, max_change
        self._least = threshold_logit(mask_threshold)
        self._seen: Seen | None = None
        self.regions = self.reused = 0

    def __call__(self, proposals: HostProposals) -> np.ndarray | None:
        """(V, D) float32 of a described frame's V regions: the embedding, or NaN for a region to be encoded."""
        queries = np.flatnonzero(proposals.areas > 0)
        logits = proposals.masks.logits[queries]
        masks = (logits > self._least).reshape(len(logits), -1)
        pixels = _small(proposals)
        seen, known = self._seen, None
        kept = [pixels] * len(masks)
        before = None if seen is None else seen.proposals.embeddings
        if seen is not None and before is not None and len(before) and _size(seen.proposals) == _size(proposals):
            known = np.full((len(masks), before.shape[1]), np.nan, np.float32)
            overlap = _overlaps(masks, seen.masks)
            # Of masks that are alike at this resolution, the one of the same query.
            likeness = overlap + 1e-3 * (queries[:, None] == seen.queries[None])
            for region, other in enumerate(likeness.argmax(axis=1)):
                if overlap[region, other] < self.min_iou:
                    continue
                both = masks[region] & seen.masks[other]
                change = pixels[both] - seen.pixels[other][both]
                if np.sqrt(np.mean(change * change)) <= self.max_change:
                    known[region], kept[region] = before[other], seen.pixels[other]
                    masks[region] = seen.masks[other]
                    self.reused += 1
        self.regions += len(masks)
        self._seen = Seen(proposals, queries, masks, kept)
        return known


def _size(proposals: HostProposals) -> tuple[int, ...]:
    return (*proposals.masks.logits.shape[1:], *proposals.masks.image_size)


def _small(proposals: HostProposals) -> np.ndarray:
    """(hm * wm, 3) float32: the resized image averaged to the grid of the mask logits, zero beyond its edge."""
    import cv2

    rows, columns = proposals.masks.logits.shape[1:]
    (high, wide), (padded_high, padded_wide) = proposals.masks.image_size, proposals.masks.padded_size
    size = (max(1, -(-wide * columns // padded_wide)), max(1, -(-high * rows // padded_high)))
    small = np.zeros((rows, columns, 3), np.float32)
    small[: size[1], : size[0]] = cv2.resize(proposals.resized, size, interpolation=cv2.INTER_AREA)
    return small.reshape(-1, 3)


def _overlaps(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every mask with every other: (V, P) and (W, P) bool -> (V, W) float32."""
    shared = masks.astype(np.float32) @ others.astype(np.float32).T
    areas = masks.sum(axis=1, dtype=np.float32)[:, None] + others.sum(axis=1, dtype=np.float32)[None]
    return shared / np.maximum(areas - shared, 1)
