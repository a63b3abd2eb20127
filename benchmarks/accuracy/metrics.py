"""Semantic segmentation metrics from a confusion matrix, by the rules of the published evaluator."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np


class SetMetrics(msgspec.Struct, frozen=True):
    """One subset of the classes against its complement, in percent; None where no class of a side occurs.

    Attributes:
        miou: mean IoU over the subset, such as the seen classes.
        pacc: share of the subset's pixels that got their class.
        complement_miou: mean IoU over the other classes, such as the unseen ones.
        complement_pacc: the same share of the other classes' pixels.
        hiou: harmonic mean of the two mean IoUs; 0 where one of them is 0.
    """

    miou: float | None
    pacc: float | None
    complement_miou: float | None
    complement_pacc: float | None
    hiou: float | None


class SemanticMetrics(msgspec.Struct, frozen=True):
    """Metrics over all pixels of a data set, in percent; None where nothing was there to be measured.

    Attributes:
        miou: sum of the classes' IoUs over the number of classes that occur in truth or prediction, so that a class
            which is only predicted counts as 0.
        fwiou: IoU weighted by each class's share of the pixels.
        macc: mean over the classes that occur of the share of their pixels that got their class.
        pacc: share of all pixels that got their class.
        iou, accuracy: per class; None for classes that do not occur in the truth.
        pixels: per class, how many pixels the truth has.
        sets: per evaluation set.
    """

    miou: float | None
    fwiou: float | None
    macc: float | None
    pacc: float | None
    iou: list[float | None]
    accuracy: list[float | None]
    pixels: list[int]
    sets: dict[str, SetMetrics]


class ConfusionMatrix:
    """Pixels counted by (predicted class, true class): (K + 1, K + 1) int64.

    Column K holds ignored pixels, row K pixels without a prediction (label -1), which count as errors.
    """

    def __init__(self, classes: int, counts: np.ndarray | None = None):
        shape = (classes + 1, classes + 1)
        if counts is not None and counts.shape != shape:
            raise ValueError(f"counts have shape {counts.shape}: {classes} classes need {shape}")
        self.classes = classes
        self.counts = np.zeros(shape, np.int64) if counts is None else counts.astype(np.int64)

    def update(self, labels: np.ndarray, truth: np.ndarray, ignore_index: int) -> None:
        """Count one image: `labels` (H, W) class indices or -1, `truth` (H, W) class indices or `ignore_index`.

        Raises ValueError when the two differ in size or a class index is out of range.
        """
        cells, counts = self.cells(labels, truth, ignore_index)
        self.add(cells, counts)

    def cells(self, labels: np.ndarray, truth: np.ndarray, ignore_index: int) -> tuple[np.ndarray, np.ndarray]:
        """The flat indices of the cells that one image touches, and its pixels in each; arguments as for `update`."""
        predicted = self._indices(labels, -1, "labels")
        actual = self._indices(truth, ignore_index, "truth")
        if labels.shape != truth.shape:
            raise ValueError(f"labels have size {labels.shape}, the truth {truth.shape}: they must be equal")
        counts = np.bincount((predicted * (self.classes + 1) + actual).ravel(), minlength=self.counts.size)
        touched = np.flatnonzero(counts)
        return touched, counts[touched]

    def _indices(self, values: np.ndarray, nothing: int, what: str) -> np.ndarray:
        indices = np.where(values == nothing, self.classes, values.astype(np.int64))
        low, high = (int(indices.min()), int(indices.max())) if indices.size else (0, 0)
        if low < 0 or high > self.classes or np.any((indices == self.classes) & (values != nothing)):
            raise ValueError(f"{what} hold values from {values.min()} to {values.max()}, for {self.classes} classes")
        return indices

    def add(self, cells: np.ndarray, counts: np.ndarray) -> None:
        """Add what `cells` gave for an image."""
        self.counts.ravel()[cells] += counts

    def to_json(self) -> dict[str, Any]:
        """Plain types: the number of classes, and the cells that are not zero as flat indices with their counts."""
        cells = np.flatnonzero(self.counts)
        return {"classes": self.classes, "cells": cells.tolist(), "counts": self.counts.ravel()[cells].tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ConfusionMatrix":
        """The matrix that `to_json` described."""
        matrix = cls(data["classes"])
        matrix.add(np.array(data["cells"], np.int64), np.array(data["counts"], np.int64))
        return matrix

    def mean_iou(self) -> float | None:
        """The mean IoU in percent, as in `metrics`."""
        every = np.ones(self.classes, bool)
        return _percent(_Tally(self.counts).mean_iou(every))

    def metrics(self, evaluation_sets: Mapping[str, Sequence[int]] | None = None) -> SemanticMetrics:
        """Every metric; `evaluation_sets` are class indices by name."""
        tally = _Tally(self.counts)
        every = np.ones(self.classes, bool)
        total = tally.truth.sum()
        weights = tally.truth / total if total else tally.truth
        sets = {}
        for name, members in (evaluation_sets or {}).items():
            inside = np.zeros(self.classes, bool)
            inside[list(members)] = True
            sets[name] = tally.compare(inside)
        return SemanticMetrics(
            miou=_percent(tally.mean_iou(every)),
            fwiou=_percent(float((tally.iou * weights).sum()) if total else None),
            macc=_percent(float(tally.accuracy.sum() / tally.occurs.sum()) if tally.occurs.any() else None),
            pacc=_percent(tally.pixel_accuracy(every)),
            iou=tally.where_present(tally.iou),
            accuracy=tally.where_present(tally.accuracy),
            pixels=tally.truth.astype(np.int64).tolist(),
            sets=sets,
        )


class _Tally:
    """Per class: pixels right, in the truth and predicted, and the ratios of them; ratios of absent classes are 0."""

    def __init__(self, counts: np.ndarray):
        kept = counts[:, :-1].astype(np.float64)
        self.right = np.diagonal(kept)
        self.truth = kept.sum(0)
        self.predicted = kept[:-1].sum(1)
        self.occurs = self.truth > 0
        self.involved = self.truth + self.predicted > 0
        self.accuracy = self.right / np.where(self.occurs, self.truth, 1)
        union = self.truth + self.predicted - self.right
        self.iou = np.where(self.occurs, self.right / np.where(self.involved, union, 1), 0)

    def where_present(self, values: np.ndarray) -> list[float | None]:
        return [_percent(value) if there else None for value, there in zip(values, self.occurs, strict=True)]

    def mean_iou(self, members: np.ndarray) -> float | None:
        count = int(self.involved[members].sum())
        return float(self.iou[members].sum() / count) if count else None

    def pixel_accuracy(self, members: np.ndarray) -> float | None:
        total = self.truth[members].sum()
        return float(self.right[members].sum() / total) if total else None

    def compare(self, inside: np.ndarray) -> SetMetrics:
        one, other = self.mean_iou(inside), self.mean_iou(~inside)
        harmonic = None
        if one is not None and other is not None:
            harmonic = 2 * one * other / (one + other) if one and other else 0.0
        return SetMetrics(
            _percent(one),
            _percent(self.pixel_accuracy(inside)),
            _percent(other),
            _percent(self.pixel_accuracy(~inside)),
            _percent(harmonic),
        )


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * float(value)
