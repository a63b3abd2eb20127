"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", arXiv 1801.00868, sections 4.1 to 4.3)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from vocabseg.benchmarks.datasets.dataset import PanopticSegment

# Two segments match when their IoU is above this; no segment can then match two others.
MATCH_ABOVE = 0.5
# A prediction is forgiven when more than this share of it lies in void or in a crowd of its own class.
FORGIVEN_ABOVE = 0.5


class QualityGroup(msgspec.Struct, frozen=True):
    """Averages in percent over the `classes` of a group that occur in truth or prediction; None where none does.

    Attributes:
        pq: panoptic quality, per class the product of the two below.
        sq: segmentation quality, the mean IoU of matched segments.
        rq: recognition quality, matches / (matches + half of what is missed or false).
    """

    pq: float | None
    sq: float | None
    rq: float | None
    classes: int


class PanopticMetrics(msgspec.Struct, frozen=True):
    """Panoptic quality over all classes, things and stuff, and per class (None where a class never occurs)."""

    all: QualityGroup
    things: QualityGroup
    stuff: QualityGroup
    pq: list[float | None]
    sq: list[float | None]
    rq: list[float | None]


class PanopticQuality:
    """Sums over images, per class: `iou` of the matches (float64), and counts `matched`, `false`, `missed` (int64)."""

    def __init__(self, classes: int):
        self.iou = np.zeros(classes, np.float64)
        self.matched = np.zeros(classes, np.int64)
        self.false = np.zeros(classes, np.int64)
        self.missed = np.zeros(classes, np.int64)

    def update(
        self,
        segmentation: np.ndarray,
        segments: Sequence[Mapping[str, Any]],
        truth: np.ndarray,
        truth_segments: Sequence[PanopticSegment],
    ) -> None:
        """Count one image.

        Args:
            segmentation: (H, W) int, predicted segment ids, 0 where there is none.
            segments: {"id", "category_id": class index} of each predicted segment.
            truth: (H, W) int, true segment ids, 0 is void.
            truth_segments: what the true ids are.

        Raises ValueError when the two differ in size.
        """
        if segmentation.shape != truth.shape:
            raise ValueError(f"segmentation has size {segmentation.shape}, truth {truth.shape}: they must be equal")
        overlaps = _overlaps(segmentation, truth)
        predicted_area, true_area = _areas(segmentation), _areas(truth)
        predicted_class = {int(segment["id"]): int(segment["category_id"]) for segment in segments}
        # An id that no segment explains is void.
        known = {segment.id: segment for segment in truth_segments}
        void: dict[int, int] = {}
        crowd: dict[int, int] = {}
        for (mine, yours), shared in overlaps.items():
            if yours not in known:
                void[mine] = void.get(mine, 0) + shared
            elif known[yours].crowd and known[yours].class_index == predicted_class.get(mine):
                crowd[mine] = crowd.get(mine, 0) + shared
        matched_mine, matched_yours = set(), set()
        for (mine, yours), shared in overlaps.items():
            segment = known.get(yours)
            if segment is None or segment.crowd or predicted_class.get(mine) != segment.class_index:
                continue
            union = predicted_area[mine] + true_area[yours] - shared - void.get(mine, 0)
            if shared / union > MATCH_ABOVE:
                self.iou[segment.class_index] += shared / union
                self.matched[segment.class_index] += 1
                matched_mine.add(mine)
                matched_yours.add(yours)
        for segment in truth_segments:
            if not segment.crowd and segment.id not in matched_yours:
                self.missed[segment.class_index] += 1
        for mine, class_index in predicted_class.items():
            area = predicted_area.get(mine, 0)
            if mine in matched_mine or not area:
                continue
            if (void.get(mine, 0) + crowd.get(mine, 0)) / area <= FORGIVEN_ABOVE:
                self.false[class_index] += 1

    def merge(self, other: "PanopticQuality") -> None:
        """Add the sums of other images."""
        self.iou += other.iou
        self.matched += other.matched
        self.false += other.false
        self.missed += other.missed

    def to_json(self) -> dict[str, list[Any]]:
        """The sums as plain lists."""
        return {name: getattr(self, name).tolist() for name in ("iou", "matched", "false", "missed")}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[Any]]) -> "PanopticQuality":
        """The sums that `to_json` described."""
        quality = cls(len(data["iou"]))
        for name, values in data.items():
            getattr(quality, name)[:] = values
        return quality

    def metrics(self, things: Collection[int]) -> PanopticMetrics:
        """The metrics; `things` are the indices of the countable classes."""
        occurs = self.matched + self.false + self.missed > 0
        sq = self.iou / np.maximum(self.matched, 1)
        rq = self.matched / np.maximum(self.matched + (self.false + self.missed) / 2, 0.5)
        pq = sq * rq
        countable = np.isin(np.arange(len(self.iou)), list(things))

        def group(members: np.ndarray) -> QualityGroup:
            chosen = members & occurs
            if not chosen.any():
                return QualityGroup(None, None, None, 0)
            means = [100 * float(values[chosen].mean()) for values in (pq, sq, rq)]
            return QualityGroup(means[0], means[1], means[2], int(chosen.sum()))

        def per_class(values: np.ndarray) -> list[float | None]:
            return [100 * float(value) if there else None for value, there in zip(values, occurs, strict=True)]

        return PanopticMetrics(
            all=group(np.ones_like(countable)),
            things=group(countable),
            stuff=group(~countable),
            pq=per_class(pq),
            sq=per_class(sq),
            rq=per_class(rq),
        )


def _areas(ids: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _overlaps(predicted: np.ndarray, truth: np.ndarray) -> dict[tuple[int, int], int]:
    """Pixels shared by each pair of a predicted and a true id."""
    pairs = predicted.astype(np.int64) << 32 | truth.astype(np.int64)
    return {(pair >> 32, pair & 0xFFFFFFFF): count for pair, count in _areas(pairs).items()}
