"""From a histogram of magnitudes to the largest magnitude that eight bits keep; anything larger is clipped."""

from collections.abc import Callable

import numpy as np

from vocabseg.calibration.observe.statistics import BINS, Statistics

LEVELS = 128  # of a magnitude in symmetric int8
PERCENTILE = 99.99
# Places to clip at that are tried.
CANDIDATES = 100

Threshold = Callable[[Statistics], float]


def largest(statistics: Statistics) -> float:
    """Nothing is clipped."""
    return statistics.largest


def percentile(statistics: Statistics, share: float = PERCENTILE) -> float:
    """The magnitude below which `share` percent of the values lie."""
    cumulated = np.cumsum(statistics.counts)
    if not cumulated[-1]:
        return statistics.largest
    place = int(np.searchsorted(cumulated, share / 100 * cumulated[-1]))
    return min((place + 1) * statistics.reach / BINS, statistics.largest)


def entropy(statistics: Statistics) -> float:
    """The threshold whose quantised distribution keeps most information (the least Kullback-Leibler divergence).

    The method of TensorRT's former calibrator (S. Migacz, "8-bit inference with TensorRT", GTC 2017): the clipped
    distribution, with the clipped values added to its last bin, against the same distribution in 128 levels.
    """
    counts = _used(statistics).copy()
    counts[0] = counts[1:2].sum()  # zeros are exact in any case, and after a ReLU there would be nothing else
    best, found = np.inf, statistics.largest
    total = max(int(counts.sum()), 1)
    for end in _ends(len(counts)):
        reference = counts[:end].astype(np.float64)
        reference[-1] += counts[end:].sum()
        divergence = _divergence(reference / total, _levelled(counts[:end].astype(np.float64)))
        if divergence < best:
            best, found = divergence, _upper(statistics, end)
    return found


def squared_error(statistics: Statistics) -> float:
    """The threshold with the least mean squared error of rounding and clipping together."""
    counts = _used(statistics)
    centres = (np.arange(len(counts)) + 0.5) * statistics.reach / BINS
    best, found = np.inf, statistics.largest
    for end in _ends(len(counts)):
        threshold = _upper(statistics, end)
        step = threshold / (LEVELS - 1)
        error = np.where(centres > threshold, (centres - threshold) ** 2, step * step / 12)
        total = float((counts * error).sum())
        if total < best:
            best, found = total, threshold
    return found


METHODS: dict[str, Threshold] = {
    "max": largest,
    "percentile": percentile,
    "entropy": entropy,
    "mse": squared_error,
}


def _used(statistics: Statistics) -> np.ndarray:
    """The bins up to the last one that holds something."""
    filled = np.flatnonzero(statistics.counts)
    return statistics.counts[: int(filled[-1]) + 1] if filled.size else statistics.counts[:1]


def _ends(bins: int) -> list[int]:
    """Bins at which to clip, the last first, so that of equally good ones the widest wins."""
    lowest = min(LEVELS, bins)
    return sorted({int(end) for end in np.linspace(lowest, bins, CANDIDATES)}, reverse=True)


def _upper(statistics: Statistics, end: int) -> float:
    return min(end * statistics.reach / BINS, statistics.largest)


def _levelled(counts: np.ndarray) -> np.ndarray:
    """The distribution after rounding to 128 levels: every level's mass spread over those of its bins that had any."""
    edges = np.linspace(0, len(counts), min(LEVELS, len(counts)) + 1).astype(int)
    mass = np.add.reduceat(counts, edges[:-1])
    filled = np.add.reduceat((counts > 0).astype(np.float64), edges[:-1])
    spread = np.divide(mass, filled, out=np.zeros_like(mass), where=filled > 0)
    levelled = np.repeat(spread, np.diff(edges)) * (counts > 0)
    total = levelled.sum()
    return levelled / total if total else levelled


def _divergence(wanted: np.ndarray, found: np.ndarray) -> float:
    there = wanted > 0
    # Where the rounded distribution is empty, a little is assumed, as is usual.
    return float((wanted[there] * np.log(wanted[there] / np.maximum(found[there], 1e-9))).sum())
