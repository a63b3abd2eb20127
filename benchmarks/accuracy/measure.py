"""Segments images of a data set and compares them with the truth, in this process or in several."""

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from typing import Any

import numpy as np

from vocabseg.benchmarks.accuracy.mask_ap import Detection
from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.benchmarks.accuracy.panoptic_quality import PanopticQuality
from vocabseg.benchmarks.accuracy.sources import Segment, Source
from vocabseg.benchmarks.datasets.dataset import Dataset, DatasetError, Sample
from vocabseg.runtime.errors import ConfigurationError, EngineError, ImageError
from vocabseg.runtime.progress import counted
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.text.vocabulary import Vocabulary

# What can be measured, where the data set has the truth and the result has the parts for it.
MEASURES = ("semantic", "panoptic", "masks")
# Detections per image that take part in the average precision, as COCO counts them.
DETECTIONS = 100


@dataclass(frozen=True)
class ImageOutcome:
    """What one image adds to the metrics; with an `error`, nothing else is there.

    Attributes:
        cells, counts: the confusion matrix's cells that the image touches, and its pixels in each.
        score: the mean IoU of this image alone, in percent; None where the truth has no class.
        panoptic: the image's sums for panoptic quality.
        detections: its predicted objects.
        crops: how many the image encoder was given; None where that is not known.
    """

    image_id: str
    error: str | None = None
    cells: np.ndarray | None = None
    counts: np.ndarray | None = None
    score: float | None = None
    panoptic: PanopticQuality | None = None
    detections: list[Detection] | None = None
    crops: int | None = None


def renamed(dataset: Dataset, vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with the data set's split; raises ConfigurationError unless it shows the data set's classes."""
    shown = vocabulary.names[: len(vocabulary.synonyms)]
    if shown != dataset.classes:
        wrong = next((pair for pair in zip(shown, dataset.classes, strict=False) if pair[0] != pair[1]), None)
        fault = (
            f"{counted(len(shown), 'class')}, not {len(dataset.classes)}"
            if wrong is None
            else f"{wrong[0]!r} for {wrong[1]!r}"
        )
        raise ConfigurationError(
            f"the vocabulary has {fault} of {dataset.name}: write the data set's names in its order, each with more "
            "names behind |"
        )
    return vocabulary.replace(seen=dataset.seen)


def vocabulary_of(dataset: Dataset) -> Vocabulary:
    """The data set's classes with its split; without one, all of them count as unseen."""
    return Vocabulary(dataset.classes, dataset.seen)


@dataclass
class ImageMeasurement:
    """Measures one image after the other; the source is opened for the first."""

    source: Source
    dataset: Dataset
    measures: Collection[str]

    @cached_property
    def _opened(self) -> tuple[Segment, Vocabulary]:
        own = getattr(self.source, "vocabulary", None)
        return self.source.open(), vocabulary_of(self.dataset) if own is None else own

    def segmented(self, sample: Sample) -> Any:
        """The result of one image."""
        segment, vocabulary = self._opened
        return segment(sample.image, vocabulary)

    def labels(self, sample: Sample) -> np.ndarray:
        """The predicted label map (H, W) of one image."""
        return self._known(np.asarray(self.segmented(sample).labels))

    def _known(self, labels: np.ndarray) -> np.ndarray:
        """The labels with -1 for the contrast class, which is none of the data set's."""
        return np.where(labels < len(self.dataset.classes), labels, np.int32(-1))

    def outcome(self, sample: Sample) -> ImageOutcome:
        """Segment an image and compare; an image or a truth that cannot be read gives an outcome with an error."""
        try:
            return self._compare(self.segmented(sample), sample)
        except (ImageError, DatasetError) as error:
            return ImageOutcome(sample.image_id, error=str(error))

    def _compare(self, result: Any, sample: Sample) -> ImageOutcome:
        dataset, classes = self.dataset, len(self.dataset.classes)
        cells = counts = score = quality = detections = None
        truth = dataset.labels(sample) if "semantic" in self.measures else None
        if truth is not None:
            _check_size(sample, result.labels.shape, truth.shape)
            cells, counts = ConfusionMatrix(classes).cells(self._known(result.labels), truth, dataset.ignore_index)
            score = _image_score(cells, counts, classes)
        segments = dataset.panoptic(sample) if "panoptic" in self.measures and hasattr(result, "panoptic") else None
        if segments is not None:
            _check_size(sample, result.labels.shape, segments[0].shape)
            quality = PanopticQuality(classes)
            found, described = result.panoptic(things=dataset.things)
            quality.update(found, described, *segments)
        if "masks" in self.measures and hasattr(result, "instances") and dataset.instances(sample) is not None:
            published: dict[str, Any] = {"overlap_threshold": None} if isinstance(result, Result) else {}
            detections = _detections(result.instances(things=dataset.things, top_k=DETECTIONS, **published))
        evidence = result.evidence if isinstance(result, Result) else None
        crops = None if evidence is None else evidence.crops
        return ImageOutcome(sample.image_id, None, cells, counts, score, quality, detections, crops)


class Runner:
    """Measures images here, or with several workers in processes that open the source and share the threads."""

    def __init__(self, measurement: ImageMeasurement, workers: int):
        self._measurement, self._pool = measurement, None
        if workers > 1:
            # A fresh process each: engines with threads do not survive a fork.
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (measurement, workers))

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def outcomes(self, samples: Sequence[Sample]) -> Iterator[ImageOutcome]:
        """The outcomes in the order of the samples."""
        if self._pool is None:
            yield from map(self._measurement.outcome, samples)
            return
        try:
            yield from self._pool.map(_outcome, samples)
        except BrokenProcessPool:
            raise EngineError("a worker process died, perhaps out of memory: run with fewer --workers") from None

    def labels(self, sample: Sample) -> np.ndarray:
        """The predicted label map (H, W) of one image."""
        if self._pool is None:
            return self._measurement.labels(sample)
        return self._pool.submit(_labels, sample).result()


_measurement: ImageMeasurement  # of a worker process


def _start(measurement: ImageMeasurement, workers: int) -> None:
    from vocabseg.runtime.threads import thread_count

    global _measurement
    _measurement = measurement
    if not os.environ.get("VOCABSEG_THREADS"):
        os.environ["VOCABSEG_THREADS"] = str(max(1, thread_count() // workers))


def _outcome(sample: Sample) -> ImageOutcome:
    return _measurement.outcome(sample)


def _labels(sample: Sample) -> np.ndarray:
    return _measurement.labels(sample)


def _detections(instances: Any) -> list[Detection]:
    from vocabseg.runtime.result.panoptic import rle_encode

    return [Detection(entry.class_index, float(entry.score), rle_encode(entry.mask)) for entry in instances]


def _check_size(sample: Sample, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise DatasetError(
            f"{sample.image} has {found[1]} x {found[0]} pixels, its annotation {expected[1]} x {expected[0]}: "
            "they do not belong together"
        )


def _image_score(cells: np.ndarray, counts: np.ndarray, classes: int) -> float | None:
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
