"""Mean IoU on labelled scenes of the procedural world, with an interval for what the scenes' choice leaves open."""

from collections.abc import Sequence

import numpy as np

from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.benchmarks.scenes.world import CLASSES
from vocabseg.benchmarks.speed.results import Check, SceneAccuracy

DRAWS = 1000
STAGE = "mIoU"
# A bundle's names must be the world's, or a low mIoU would mean nothing.
NEEDED = "a bundle with the procedural world's classes, such as the demo model"


def knows_the_world(names: Sequence[str]) -> bool:
    """Whether the vocabulary is the world's own, in its order."""
    return tuple(names) == tuple(CLASSES)


def scene_accuracy(
    labels: Sequence[np.ndarray], other: Sequence[np.ndarray], truths: Sequence[np.ndarray], seed: int = 0
) -> SceneAccuracy:
    """Label maps (H, W) of two variants against the truth (H, W), per scene.

    The interval of the difference in mean IoU is the middle 95 % of 1,000 drawings of as many scenes, with replacement.
    Raises ValueError without scenes.
    """
    if not truths:
        raise ValueError("no scene to measure")
    counts = np.stack(
        [np.stack([_counts(found[index], truth) for index, truth in enumerate(truths)]) for found in (labels, other)]
    )
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(DRAWS):
        weights = np.bincount(generator.integers(0, len(truths), len(truths)), minlength=len(truths))
        drawn = np.tensordot(counts, weights, axes=(1, 0))
        differences.append(_miou(drawn[0]) - _miou(drawn[1]))
    low, high = np.percentile(differences, [2.5, 97.5])
    total = counts.sum(axis=1)
    return SceneAccuracy(
        scenes=len(truths), miou=_miou(total[0]), other=_miou(total[1]), low=float(low), high=float(high)
    )


def scene_check(accuracy: SceneAccuracy, limit: float) -> Check:
    """The difference in mean IoU as a figure of the parity contract."""
    difference = abs(accuracy.miou - accuracy.other)
    return Check(stage=STAGE, what="difference in mean IoU, points", value=difference, limit=limit)


def _counts(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(3, K) per class: pixels right, in the truth, predicted."""
    matrix = ConfusionMatrix(len(CLASSES))
    matrix.update(labels, truth, ignore_index=255)
    kept = matrix.counts[:, :-1]
    return np.stack([np.diagonal(kept), kept.sum(0), kept[:-1].sum(1)])


def _miou(counts: np.ndarray) -> float:
    """In percent, by the rule of `ConfusionMatrix.metrics`: a class that is only predicted counts as 0."""
    right, truth, predicted = counts
    involved = truth + predicted > 0
    iou = np.where(truth > 0, right / np.maximum(truth + predicted - right, 1), 0)
    return 100 * float(iou[involved].sum() / max(int(involved.sum()), 1))
