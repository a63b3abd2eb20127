"""The parity contract: what every stage of a variant gives, compared with the same stage of another.

Each stage is fed with what the other one's previous stage gave, so that an error is seen where it is made; the labels
of the whole way from the image are compared as well. Thresholds make exceptions necessary: a mask's pixel whose
probability lies within rounding of the threshold may fall on either side, and changes its crop, embedding and class
probabilities with it. Such masks are left out where they are compared one by one; for the labels, what they can have
moved widens the margin that a pixel needs in order to count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.benchmarks.scenes.world import CLASSES
from vocabseg.benchmarks.speed.results import Check, Parity, SceneAccuracy
from vocabseg.benchmarks.speed.variants import Capture
from vocabseg.runtime.bundle.sections import RegionSpec

# How far from the threshold a box is taken at both sides, and a pixel's probability, before they count as steady. From
# the same mask logits rounding moves a probability by 1.5e-6: logits reach 37, a float32 has 24 bits, the sigmoid's
# slope is 1/4.
BOX_STABLE, PIXEL_STABLE = 1e-4, 5e-6
MARGIN = 1e-4
SIGMOID_SLOPE = 0.25
END_TO_END = "labels"
# Sets of scenes drawn for the interval of mean IoU.
DRAWS = 1000
# Makes one figure out of those of all images; NaN stays NaN.
Pick = Callable[[Sequence[float]], Any]

# The contract, by figure; one without a limit is shown only.
_EVERYWHERE = {"network input": 1e-5, "boxes": 0.0, "crops": 1e-4, "patches": 0.0}
_HALF = {**_EVERYWHERE, "cosine mean": 0.9995, "cosine worst": 0.998, "labels, all": 0.995, "miou": 0.1}
_QUANTISED = {**_EVERYWHERE, "miou": 0.5}
TOLERANCES = {
    "float32": {
        **_EVERYWHERE, "mask logits": 1e-3, "mask logits, whole way": 1e-3, "queries": 0.99999,
        "cosine mean": 0.99999, "cosine worst": 0.99999, "probabilities": 1e-3,
        "labels, same": 0.9999, "labels, clear": 0.9999, "miou": 0.01,
    },
    "bfloat16": _HALF, "float16": _HALF, "int8": _QUANTISED, "fp8": _QUANTISED,
}  # fmt: skip
# Stage, what the figure is, its name, how the images' figures are put together, whether the limit is a lower one.
RULES: tuple[tuple[str, str, str, Pick, bool], ...] = (
    ("resize_normalize", "network input, largest difference", "network input", np.max, False),
    ("proposal", "mask logits, largest difference", "mask logits", np.max, False),
    ("proposal", "query embeddings, worst cosine", "queries", np.min, True),
    ("region_boxes", "boxes and flags that differ", "boxes", np.sum, False),
    ("crop_regions", "crops, largest difference", "crops", np.max, False),
    ("crop_regions", "patches of masks that differ", "patches", np.sum, False),
    ("image_encoder", "region embeddings, mean cosine", "cosine mean", np.mean, True),
    ("image_encoder", "region embeddings, worst cosine", "cosine worst", np.min, True),
    ("classify", "probabilities, largest difference", "probabilities", np.max, False),
    ("compose", "labels from the same proposals, share", "labels, same", np.mean, True),
    (END_TO_END, "mask logits of the whole way", "mask logits, whole way", np.max, False),
    (END_TO_END, "labels of clear pixels, share", "labels, clear", np.mean, True),
    (END_TO_END, "pixels that are clear, share", "clear pixels", np.mean, True),
    (END_TO_END, "labels of all pixels, share", "labels, all", np.mean, True),
    ("regions", "compared one by one", "steady", np.sum, True),
    ("regions", "left out, too near the threshold", "left out", np.sum, False),
)


@dataclass(frozen=True)
class Figures:
    """What comparing one image gave; `agreement` is the share of all its pixels that have the same label."""

    values: dict[str, float]
    agreement: float


def compare_image(
    expected: Capture, alone: Capture, whole: Capture, kernels: ModuleType, region: RegionSpec
) -> Figures:
    """The figures of one image.

    Args:
        expected: everything the other variant gave.
        alone: this variant's stages, each fed by `expected` (`capture_from`).
        whole: everything this variant gave on the whole way from the image (`capture`).
        kernels: what resamples the expected masks.
        region: what counts as inside a mask.
    """
    steady, boxed = _steady(expected, kernels, region, PIXEL_STABLE), _boxed(expected, kernels, region)
    values: dict[str, float] = {
        "network input": _largest(alone.network_input, expected.network_input),
        "mask logits": _largest(alone.mask_logits, expected.mask_logits),
        "boxes": float(_differing_boxes(alone, expected, boxed)),
        "left out": float(np.count_nonzero(~steady & expected.valid)),
        "steady": float(np.count_nonzero(steady & expected.valid)),
    }
    if expected.query_embeddings is not None and alone.query_embeddings is not None:
        cosines = _cosines(alone.query_embeddings, expected.query_embeddings)
        values["queries"] = float(cosines.min(initial=1.0))
    if expected.crops is not None and alone.crops is not None:
        mine, theirs = (np.cumsum(flags.valid) - 1 for flags in (alone, expected))
        shared = np.flatnonzero(steady & alone.valid & expected.valid)
        here, there = mine[shared], theirs[shared]
        values["crops"] = _largest(alone.crops[here], expected.crops[there])
        if alone.patch_masks is not None and expected.patch_masks is not None:
            differing = alone.patch_masks[here] != expected.patch_masks[there]
            values["patches"] = float(np.count_nonzero(differing))
        if alone.embeddings is not None and expected.embeddings is not None:
            cosines = _cosines(alone.embeddings[here], expected.embeddings[there])
            if cosines.size:
                values |= {"cosine mean": float(cosines.mean()), "cosine worst": float(cosines.min())}
    values["probabilities"], same_shift = _probabilities(alone, expected, steady)
    values["labels, same"] = _agreement(alone.labels, expected, same_shift)
    drift = _largest(whole.mask_logits, expected.mask_logits)
    reach = SIGMOID_SLOPE * drift + PIXEL_STABLE
    _, shift = _probabilities(whole, expected, _steady(expected, kernels, region, reach))
    agreement = float(np.mean(whole.labels == expected.labels))
    values |= {
        "mask logits, whole way": drift,
        "clear pixels": float(np.mean(expected.margin > MARGIN + shift)),
        "labels, clear": _agreement(whole.labels, expected, shift),
        "labels, all": agreement,
    }
    return Figures(values, agreement)


def judge(figures: Sequence[Figures], against: str, precision: str, miou: SceneAccuracy | None = None) -> Parity:
    """The contract over all images: the worst of each figure, and the first stage beyond its tolerance."""
    limits = TOLERANCES[precision]
    checks = []
    for stage, what, name, pick, least in RULES:
        found = [one.values[name] for one in figures if name in one.values]
        if found:
            value = _writable(float(pick(found)), least)
            checks.append(Check(stage=stage, what=what, value=value, limit=limits.get(name), least=least))
    if miou is not None:
        difference = abs(miou.miou - miou.other)
        checks.append(
            Check(stage="mIoU", what="difference in mean IoU, points", value=difference, limit=limits["miou"])
        )
    agreement = [one.agreement for one in figures]
    return Parity(
        against=against,
        precision=precision,
        checks=checks,
        broken=next((check.stage for check in checks if not check.passed), None),
        worst_image=int(np.argmin(agreement)),
        agreement=agreement,
        miou=miou,
    )


def scene_accuracy(
    labels: Sequence[np.ndarray], other: Sequence[np.ndarray], truths: Sequence[np.ndarray], seed: int = 0
) -> SceneAccuracy:
    """Label maps (H, W) of two variants against the truth (H, W), per scene of the procedural world.

    The interval of the difference in mean IoU is the middle 95 % of 1,000 drawings of as many scenes, with replacement:
    what the scenes' choice leaves open. Raises ValueError without scenes.
    """
    if not truths:
        raise ValueError("no scene to measure")
    # (2, scenes, cells); as float64, whose products are fast, and exact for counts.
    counts = np.stack([[_confusion(*pair) for pair in zip(found, truths, strict=True)] for found in (labels, other)])
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(DRAWS):
        weights = np.bincount(generator.integers(0, len(truths), len(truths)), minlength=len(truths))
        drawn = weights @ counts
        differences.append(_miou(drawn[0]) - _miou(drawn[1]))
    low, high = np.percentile(differences, [2.5, 97.5]).tolist()
    one, two = map(_miou, counts.sum(axis=1))
    return SceneAccuracy(scenes=len(truths), miou=one, other=two, low=low, high=high)


def _confusion(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    matrix = ConfusionMatrix(len(CLASSES))
    matrix.update(labels, truth, ignore_index=255)
    return matrix.counts.ravel().astype(np.float64)


def _miou(counts: np.ndarray) -> float:
    side = len(CLASSES) + 1
    return ConfusionMatrix(len(CLASSES), counts.reshape(side, side)).mean_iou() or 0.0


def _writable(value: float, least: bool) -> float:
    """JSON knows neither infinity nor NaN: they become the worst number there is."""
    return value if np.isfinite(value) else float(np.finfo(np.float64).max) * (-1 if least else 1)


def _largest(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one.astype(np.float64) - other).max(initial=0.0))


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    if one.shape != other.shape:
        return np.array([-1.0])
    a, b = one.astype(np.float64), other.astype(np.float64)
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def _steady(expected: Capture, kernels: ModuleType, region: RegionSpec, reach: float) -> np.ndarray:
    """(N,) bool: no pixel of the mask has a probability within `reach` of the threshold."""
    steady = np.ones(len(expected.mask_logits), bool)
    for index in range(len(steady)):  # one at a time: all masks at full size may be hundreds of megabytes
        probability = kernels.resample_masks(expected.masks[index : index + 1])
        steady[index] = not np.any(np.abs(probability - region.mask_threshold) < reach)
    return steady


def _boxed(expected: Capture, kernels: ModuleType, region: RegionSpec) -> np.ndarray:
    """(N,) bool: box and flag are the same at thresholds a little lower and higher."""
    found = []
    for threshold in (region.mask_threshold - BOX_STABLE, region.mask_threshold + BOX_STABLE):
        limit = min(max(threshold, 0.0), 1.0)
        boxes, areas = kernels.region_boxes(expected.masks, limit)
        found.append(np.where((areas > 0)[:, None], boxes, -1))
    return (found[0] == found[1]).all(axis=1)


def _differing_boxes(alone: Capture, expected: Capture, stable: np.ndarray) -> int:
    """Masks with a stable box whose flag or box differs."""

    def full(capture: Capture) -> np.ndarray:
        boxes = np.full((len(capture.valid), 4), -1, np.int64)
        boxes[capture.valid] = capture.boxes
        return boxes

    return int(np.count_nonzero((full(alone) != full(expected)).any(axis=1) & stable))


def _probabilities(found: Capture, expected: Capture, steady: np.ndarray) -> tuple[float, float]:
    """The largest difference of a steady mask's probabilities, and what the others can have moved.

    A class score is a sum of probability times mask, which is at most 1: the difference of two scores moves by twice
    the largest per-class sum at most.
    """
    count, classes = len(expected.mask_logits), expected.probabilities.shape[1]
    full = np.zeros((2, count, classes))
    full[0][found.voters], full[1][expected.voters] = found.probabilities, expected.probabilities
    moved = np.abs(full[0] - full[1])
    # A flag that differs shows among the boxes; here its mask has no counterpart.
    compared = steady & (found.valid == expected.valid)
    largest = float(moved[compared].max(initial=0.0))
    return largest, 2 * float(moved[~compared].sum(axis=0).max(initial=0.0))


def _agreement(labels: np.ndarray, expected: Capture, shift: float) -> float:
    """Share of the pixels with a margin over 1e-4 and `shift` that have the expected label."""
    clear = expected.margin > MARGIN + shift
    return float(np.mean(labels[clear] == expected.labels[clear])) if clear.any() else 1.0
