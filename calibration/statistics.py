"""What is remembered of a tensor's values: exact extremes, a histogram of magnitudes, and the largest per channel.

Everything is streamed and exact whatever the order: a histogram reaches to a power of two and doubles its reach by
joining neighbouring bins, which gives the counts it would have had with that reach from the start.
"""

from dataclasses import dataclass, field

import numpy as np

BINS = 2048
# Of one array at most so many values enter the histogram, evenly spaced; extremes are taken over all of them.
SAMPLED = 1 << 17
# FP16: the largest number, the smallest with full precision, and the smallest at all.
HALF_MAX = 65504.0
HALF_NORMAL = 2.0**-14
HALF_TINY = 2.0**-24
# Magnitudes under this count as zero.
NOTHING = 1e-30


@dataclass
class Statistics:
    """Of one tensor.

    Attributes:
        low, high: the smallest and the largest value.
        smallest: the smallest magnitude that is not 0.
        reach: the histogram covers magnitudes from 0 to this power of two; 0 while all values were 0.
        counts: (BINS,) int64, sampled values by magnitude.
        channels: (C,) float32, the largest magnitude in each channel of the last axis; empty where not asked for.
        values: how many were sampled; `normal`, `tiny`: of them, those (not 0) under FP16's normal and smallest number.
        broken: values that were infinite or no number.
    """

    low: float = np.inf
    high: float = -np.inf
    smallest: float = np.inf
    reach: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    channels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    values: int = 0
    normal: int = 0
    tiny: int = 0
    broken: int = 0

    @property
    def largest(self) -> float:
        """The largest magnitude; 0 before anything was seen."""
        return max(abs(self.low), abs(self.high)) if self.high >= self.low else 0.0

    def update(self, array: np.ndarray, channels: bool = False) -> None:
        """Take in an array of float values; with `channels`, the last axis has a fixed size."""
        if not array.size:
            return
        if channels:
            found = np.abs(array).reshape(-1, array.shape[-1]).max(0)
            self.channels = found if not self.channels.size else np.maximum(self.channels, found)
        low, high = float(array.min()), float(array.max())
        flat = array.reshape(-1)
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = np.isfinite(flat)
            self.broken += int(flat.size - finite.sum())
            flat = flat[finite]
            if not flat.size:
                return
            low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        step = max(1, -(-flat.size // SAMPLED))
        magnitudes = np.abs(flat[::step].astype(np.float64))
        self._widen(max(float(magnitudes.max()), 0.0))
        self.values += magnitudes.size
        positive = magnitudes[magnitudes > NOTHING]
        if positive.size:
            self.smallest = min(self.smallest, float(positive.min()))
            self.normal += int(np.count_nonzero(positive < HALF_NORMAL))
            self.tiny += int(np.count_nonzero(positive < HALF_TINY))
        if self.reach:
            places = np.minimum((magnitudes * (BINS / self.reach)).astype(np.int64), BINS - 1)
            self.counts += np.bincount(places, minlength=BINS)
        else:
            self.counts[0] += magnitudes.size

    def merge(self, other: "Statistics") -> None:
        """Take in what another one has seen."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.smallest = min(self.smallest, other.smallest)
        self._widen(other.reach)
        mine = Statistics(reach=other.reach, counts=other.counts.copy())
        mine._widen(self.reach)
        self.counts = self.counts + mine.counts
        if other.channels.size:
            both = self.channels.size == other.channels.size
            self.channels = np.maximum(self.channels, other.channels) if both else other.channels.copy()
        self.values += other.values
        self.normal += other.normal
        self.tiny += other.tiny
        self.broken += other.broken

    def _widen(self, magnitude: float) -> None:
        """Let the histogram reach to `magnitude`."""
        if magnitude <= NOTHING or magnitude <= self.reach:
            return
        needed = 2.0 ** int(np.ceil(np.log2(magnitude)))
        if not self.reach:
            self.reach = needed
            return
        while self.reach < needed:
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([joined, np.zeros(BINS // 2, np.int64)])
            self.reach *= 2


def pack(statistics: dict[str, Statistics]) -> dict[str, np.ndarray]:
    """Statistics by tensor as arrays that `numpy.savez` takes; `unpack` reads them."""
    names = list(statistics)
    scalars = [
        [one.low, one.high, one.smallest, one.reach, one.values, one.normal, one.tiny, one.broken]
        for one in statistics.values()
    ]
    arrays = {
        "names": np.array(names),
        "scalars": np.array(scalars, np.float64).reshape(len(names), 8),
        "counts": np.stack([one.counts for one in statistics.values()]) if names else np.zeros((0, BINS), np.int64),
    }
    arrays |= {f"channels/{index}": one.channels for index, one in enumerate(statistics.values())}
    return arrays


def unpack(arrays: dict[str, np.ndarray]) -> dict[str, Statistics]:
    """The statistics that `pack` gave arrays for."""
    found = {}
    for index, name in enumerate(arrays["names"].tolist()):
        low, high, smallest, reach, *whole = arrays["scalars"][index].tolist()
        values, normal, tiny, broken = (int(number) for number in whole)
        channels = arrays[f"channels/{index}"]
        found[name] = Statistics(
            low, high, smallest, reach, arrays["counts"][index].copy(), channels, values, normal, tiny, broken
        )
    return found
