"""Segment one image of a data set and compare the result with the truth."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from vocabseg.benchmarks.accuracy.mask_ap import Detection
from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.benchmarks.accuracy.panoptic_quality import PanopticQuality
from vocabseg.benchmarks.accuracy.sources import Segment
from vocabseg.benchmarks.datasets.dataset import Dataset, DatasetError, Sample
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.text.vocabulary import Vocabulary

# What can be measured, where the data set has the truth for it and the result the means.
MEASURES = ("semantic", "panoptic", "masks")
# Detections per image that take part in the average precision, as COCO counts them.
DETECTIONS = 100


@dataclass(frozen=True)
class Outcome:
    """What one image adds to the metrics; with an `error`, nothing else is there.

    Attributes:
        cells, counts: the confusion matrix's cells that the image touches, and its pixels in each.
        score: the mean IoU of this image alone, in percent; None where the truth has no class.
        panoptic: the image's sums for panoptic quality.
        detections: its predicted objects.
    """

    image_id: str
    error: str | None = None
    cells: np.ndarray | None = None
    counts: np.ndarray | None = None
    score: float | None = None
    panoptic: PanopticQuality | None = None
    detections: list[Detection] | None = None


def vocabulary_of(dataset: Dataset) -> Vocabulary:
    """The data set's classes with its split; without one, all of them count as unseen."""
    return Vocabulary(dataset.classes, dataset.seen)


def measure(
    segment: Segment, dataset: Dataset, sample: Sample, vocabulary: Vocabulary, measures: Collection[str] = MEASURES
) -> Outcome:
    """Segment an image and compare; images and truths that cannot be read give an outcome with an error."""
    try:
        result = segment(sample.image, vocabulary)
        return _compare(result, dataset, sample, measures)
    except (ImageError, DatasetError) as error:
        return Outcome(sample.image_id, error=str(error))


def _compare(result: Any, dataset: Dataset, sample: Sample, measures: Collection[str]) -> Outcome:
    cells = counts = score = quality = None
    truth = dataset.labels(sample) if "semantic" in measures else None
    if truth is not None:
        _check_size(sample, result.labels.shape, truth.shape)
        matrix = ConfusionMatrix(len(dataset.classes))
        cells, counts = matrix.cells(result.labels, truth, dataset.ignore_index)
        score = image_score(cells, counts, len(dataset.classes))
    segments = dataset.panoptic(sample) if "panoptic" in measures and hasattr(result, "panoptic") else None
    if segments is not None:
        _check_size(sample, result.labels.shape, segments[0].shape)
        quality = PanopticQuality(len(dataset.classes))
        found, described = result.panoptic(things=dataset.things)
        quality.update(found, described, segments[0], segments[1])
    detections = None
    if "masks" in measures and hasattr(result, "instances") and dataset.instances(sample) is not None:
        detections = _detections(result.instances(things=dataset.things, top_k=DETECTIONS))
    return Outcome(sample.image_id, None, cells, counts, score, quality, detections)


def _detections(instances: Any) -> list[Detection]:
    from vocabseg.runtime.result.panoptic import rle_encode

    return [Detection(entry.class_index, float(entry.score), rle_encode(entry.mask)) for entry in instances]


def _check_size(sample: Sample, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise DatasetError(
            f"{sample.image} has {found[1]} x {found[0]} pixels, its annotation {expected[1]} x {expected[0]}: "
            "they do not belong together"
        )


def image_score(cells: np.ndarray, counts: np.ndarray, classes: int) -> float | None:
    """The mean IoU in percent of the image whose cells these are, by the rule of `SemanticMetrics.miou`."""
    predicted, true = np.divmod(cells, classes + 1)
    kept = true < classes
    predicted, true, counts = predicted[kept], true[kept], counts[kept]
    truth = np.bincount(true, counts, classes)
    found = np.bincount(predicted, counts, classes + 1)[:classes]
    right = np.bincount(true[predicted == true], counts[predicted == true], classes)
    there = truth > 0
    if not there.any():
        return None
    iou = right[there] / (truth + found - right)[there]
    return 100 * float(iou.sum() / np.count_nonzero(truth + found))
