"""Accuracy: segment a data set with an engine, or with the PyTorch reference, and measure how accurate it is."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vocabseg.benchmarks.accuracy.mask_ap import MaskMetrics, mask_average_precision
from vocabseg.benchmarks.accuracy.measure import MEASURES, ImageMeasurement, Runner
from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix, SemanticMetrics
from vocabseg.benchmarks.accuracy.panoptic_quality import PanopticMetrics
from vocabseg.benchmarks.accuracy.sources import OpenedSource, Segment, Source, as_source, described_settings
from vocabseg.benchmarks.accuracy.state import EvaluationState, dataset_identity
from vocabseg.benchmarks.datasets.dataset import Dataset, DatasetError, Sample
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.progress import Progress, silent

# Images between two writes of what is done.
IMAGES_PER_SAVE = 25
# Best and worst images that are shown.
EXAMPLES = 4


class Confusion(msgspec.Struct, frozen=True):
    """Pixels of one class that were given another, and their share of the true class in percent."""

    true: str
    predicted: str
    pixels: int
    share: float


class ScoredImage(msgspec.Struct, frozen=True):
    """An image and its own mean IoU in percent."""

    image_id: str
    miou: float


class Accuracy(msgspec.Struct, frozen=True):
    """Everything that an evaluation found.

    Attributes:
        dataset, classes, seen: what it was measured on.
        source: what was measured: model, engine, and digests of its settings.
        images: how many were measured; broken: the other images, with the reason.
        semantic, panoptic, masks: metrics in percent; None where there was no truth or no prediction of the kind.
        confusions: the largest ones, by pixels.
        best, worst: images by their own mean IoU.
        settings: the source's, by section.
        crops: how many the image encoder was given for an image, on average; None where that is not known.
    """

    dataset: str
    classes: list[str]
    seen: list[bool] | None
    source: dict[str, str]
    images: int
    broken: dict[str, str]
    semantic: SemanticMetrics | None
    panoptic: PanopticMetrics | None
    masks: MaskMetrics | None
    confusions: list[Confusion]
    best: list[ScoredImage]
    worst: list[ScoredImage]
    settings: dict[str, Any] = {}
    crops: float | None = None

    def unseen(self, index: int) -> bool:
        """Whether a class was not seen in training."""
        return self.seen is not None and not self.seen[index]

    @property
    def split(self) -> bool:
        """Whether there are unseen classes."""
        return self.seen is not None and not all(self.seen)


class Example(msgspec.Struct, frozen=True):
    """One image to show: where it is, its mean IoU, and label maps of truth and prediction."""

    image: Path
    miou: float
    truth: np.ndarray
    labels: np.ndarray


class Evaluation(msgspec.Struct, frozen=True):
    """An accuracy with what its pictures need: the confusion matrix, and the worst and best images."""

    accuracy: Accuracy
    confusion: ConfusionMatrix | None
    worst: list[Example]
    best: list[Example]
    ignore_index: int


def evaluate(
    segmenter: Source | Segment,
    dataset: Dataset,
    output: str | Path | None = None,
    *,
    limit: int | None = None,
    workers: int = 1,
    measures: Collection[str] = MEASURES,
    examples: int = EXAMPLES,
    save_every: int = IMAGES_PER_SAVE,
    progress: Progress = silent,
    notify: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Segment the images of `dataset` into its classes and measure the labels.

    Args:
        segmenter: an opened segmenter, or a source (BundleSource, ReferenceSource) that can be opened, which more than
            one worker needs.
        output: folder in which partial results are kept; with the same model, settings and data set an interrupted
            evaluation goes on there. None keeps nothing.
        limit: measure only the first so many images.
        workers: processes; each opens the source for itself.
        measures: of "semantic", "panoptic" and "masks"; each is measured where the data set has the truth for it.
        examples: how many of the worst and of the best images are segmented again to be shown.
        save_every: images between two writes.
        progress: called after each image, with the mean IoU so far in words.
        notify: called with a line when earlier results are continued, or cannot be.

    Images that cannot be read, or do not fit their annotation, are listed and left out. Raises DatasetError when none
    is left, ConfigurationError for arguments that cannot be used, and whatever opening the source raises.
    """
    source = as_source(segmenter)
    _check(source, limit, workers, measures)
    samples = dataset.samples()[:limit]
    if not samples:
        raise DatasetError(f"{dataset.name} has no image")
    state = _state(source, dataset, samples, None if output is None else Path(output), measures, notify)
    with Runner(ImageMeasurement(source, dataset, measures), workers) as runner:
        _run(runner, samples, state, save_every, progress)
        if not state.scores:
            first = next(iter(state.broken.values()))
            raise DatasetError(
                f"none of the {len(samples)} images of {dataset.name} could be measured, the first: {first}"
            )
        accuracy = _summary(source, dataset, samples, state, examples)
        by_id = {sample.image_id: sample for sample in samples}
        worst, best = (
            [_example(runner, dataset, by_id[entry.image_id], entry.miou) for entry in entries]
            for entries in (accuracy.worst, accuracy.best)
        )
    return Evaluation(accuracy, state.confusion, worst, best, dataset.ignore_index)


def _check(source: Source, limit: int | None, workers: int, measures: Collection[str]) -> None:
    if limit is not None and limit < 1:
        raise ConfigurationError(f"the limit is {limit}: give at least 1 image")
    if workers < 1:
        raise ConfigurationError(f"the number of workers is {workers}: give at least 1")
    unknown = sorted(set(measures) - set(MEASURES))
    if unknown or not measures:
        raise ConfigurationError(
            f"unknown measure {', '.join(unknown) or '(none)'}: give some of {', '.join(MEASURES)}"
        )
    if workers > 1 and isinstance(source, OpenedSource):
        raise ConfigurationError(
            "an opened segmenter cannot be sent to other processes: give a BundleSource, or 1 worker"
        )


def _state(
    source: Source,
    dataset: Dataset,
    samples: Sequence[Sample],
    output: Path | None,
    measures: Collection[str],
    say: Callable[[str], None],
) -> EvaluationState:
    """A state with what an earlier evaluation of the same things left in the output folder."""
    identity = {**source.identity, **dataset_identity(dataset), "measures": " ".join(sorted(measures))}
    state = EvaluationState(identity, len(dataset.classes), output)
    reason = state.load()
    if not state.done <= {sample.image_id for sample in samples}:
        raise ConfigurationError(
            f"{output} holds results of {len(state.done)} images, more than the {len(samples)} wanted now: "
            "choose another output folder, or raise the limit"
        )
    if reason is not None:
        say(f"{reason}: starting again")
        state.discard()
    elif state.scores:
        say(f"{len(state.scores)} of {len(samples)} images are done already: going on from there")
    return state


def _run(
    runner: Runner, samples: Sequence[Sample], state: EvaluationState, save_every: int, progress: Progress
) -> None:
    remaining = [sample for sample in samples if sample.image_id not in state.done]
    unsaved = 0
    try:
        for outcome in runner.outcomes(remaining):
            state.add(outcome)
            unsaved += 1
            if unsaved >= save_every:
                state.save()
                unsaved = 0
            miou = None if state.confusion is None else state.confusion.mean_iou()
            so_far = "no mIoU yet" if miou is None else f"mIoU {miou:.2f} so far"
            progress(so_far, len(state.done), len(samples))
    finally:
        if unsaved:
            state.save()


def _summary(
    source: Source, dataset: Dataset, samples: Sequence[Sample], state: EvaluationState, examples: int
) -> Accuracy:
    ranked = sorted(
        (ScoredImage(image_id, score) for image_id, score in state.scores.items() if score is not None),
        key=lambda entry: (entry.miou, entry.image_id),
    )
    shown = min(examples, len(ranked) // 2) if len(ranked) > 1 else len(ranked)
    masks = None
    if state.detections:
        measured = [sample for sample in samples if sample.image_id in state.detections]
        truth = {sample.image_id: dataset.instances(sample) or [] for sample in measured}
        masks = mask_average_precision(truth, state.detections, len(dataset.classes))
    confusion = state.confusion
    return Accuracy(
        dataset=dataset.name,
        classes=list(dataset.classes),
        seen=None if dataset.seen is None else list(dataset.seen),
        source=source.identity,
        images=len(state.scores),
        broken=dict(sorted(state.broken.items())),
        semantic=None if confusion is None else confusion.metrics(dataset.evaluation_sets),
        panoptic=None if state.panoptic is None else state.panoptic.metrics(dataset.things),
        masks=masks,
        confusions=[] if confusion is None else largest_confusions(confusion, dataset.classes),
        best=ranked[::-1][:shown],
        worst=ranked[:shown] if len(ranked) > 1 else [],
        settings=described_settings(source),
        crops=sum(state.crops) / len(state.crops) if state.crops else None,
    )


def largest_confusions(matrix: ConfusionMatrix, classes: Sequence[str], count: int = 20) -> list[Confusion]:
    """The pairs of a true class and another predicted for it with the most pixels, largest first."""
    wrong = matrix.counts[:-1, :-1].copy()
    np.fill_diagonal(wrong, 0)
    totals = matrix.counts[:, :-1].sum(0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    found = []
    for cell in order.tolist():
        predicted, true = divmod(cell, len(classes))
        pixels = int(wrong[predicted, true])
        if pixels:
            found.append(Confusion(classes[true], classes[predicted], pixels, 100 * pixels / int(totals[true])))
    return found


def _example(runner: Runner, dataset: Dataset, sample: Sample, miou: float) -> Example:
    truth = dataset.labels(sample)
    if truth is None:
        raise DatasetError(f"{sample.image_id} of {dataset.name} has lost its label map")
    return Example(sample.image, miou, truth, runner.labels(sample))
