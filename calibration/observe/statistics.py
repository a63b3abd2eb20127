"""What is kept of a tensor's values: exact extremes, a histogram of magnitudes, and the largest per channel.

Everything is streamed, and exact in any order: a histogram reaches up to a power of two and doubles its reach by
joining neighbouring bins, which gives the counts it would have had with that reach from the start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

BINS = 2048
# At most this many values of one array enter the histogram, evenly spaced; extremes are taken over all of them.
SAMPLED = 1 << 17
# FP16: the largest number, and the smallest with full precision.
HALF_MAX = 65504.0
HALF_NORMAL = 2.0**-14
# Magnitudes below this count as zero.
NOTHING = 1e-30


@dataclass
class Statistics:
    """Of one tensor.

    Attributes:
        low, high: the smallest and the largest value.
        smallest: the smallest magnitude that is not 0.
        reach: the histogram covers magnitudes from 0 to this power of two; 0 while all values were 0.
        counts: (BINS,) int64, sampled values by magnitude.
        values: how many were sampled.
        broken: values that were infinite or NaN.
        channels: (C,) float32, the largest magnitude in each channel of the last axis; empty unless asked for.
    """

    low: float = np.inf
    high: float = -np.inf
    smallest: float = np.inf
    reach: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    values: int = 0
    broken: int = 0
    channels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def largest(self) -> float:
        """The largest magnitude; 0 before any value was seen."""
        return max(abs(self.low), abs(self.high)) if self.high >= self.low else 0.0

    def update(self, array: np.ndarray, channels: bool = False) -> None:
        """Add an array of float values; with `channels`, the last axis has a fixed size."""
        if not array.size:
            return
        if channels:
            found = np.abs(array).reshape(-1, array.shape[-1]).max(0)
            self.channels = found if not self.channels.size else np.maximum(self.channels, found)
        flat = array.reshape(-1)
        if not (np.isfinite(flat.min()) and np.isfinite(flat.max())):
            finite = np.isfinite(flat)
            self.broken += int(flat.size - finite.sum())
            flat = flat[finite]
            if not flat.size:
                return
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        magnitudes = np.abs(flat[:: max(1, -(-flat.size // SAMPLED))].astype(np.float64))
        self.values += magnitudes.size
        positive = magnitudes[magnitudes > NOTHING]
        if positive.size:
            self.smallest = min(self.smallest, float(positive.min()))
            self._widen(float(positive.max()))
        if self.reach:
            places = np.minimum((magnitudes * (BINS / self.reach)).astype(np.int64), BINS - 1)
            self.counts += np.bincount(places, minlength=BINS)
        else:
            self.counts[0] += magnitudes.size

    def _widen(self, magnitude: float) -> None:
        """Let the histogram reach to `magnitude`."""
        if magnitude <= self.reach:
            return
        needed = 2.0 ** int(np.ceil(np.log2(magnitude)))
        self.reach = self.reach or needed
        while self.reach < needed:
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([joined, np.zeros(BINS // 2, np.int64)])
            self.reach *= 2


# Channels differ in number from tensor to tensor; the other fields can be stacked.
STACKED = [one.name for one in fields(Statistics) if one.name != "channels"]


def pack(statistics: Mapping[str, Statistics]) -> dict[str, np.ndarray]:
    """Statistics by tensor as arrays for `numpy.savez`; `unpack` reads them."""
    arrays = {name: np.array([getattr(one, name) for one in statistics.values()]) for name in STACKED}
    arrays |= {f"channels/{index}": one.channels for index, one in enumerate(statistics.values())}
    return {"names": np.array(list(statistics), np.str_), **arrays}


def unpack(arrays: Mapping[str, np.ndarray]) -> dict[str, Statistics]:
    """The statistics that `pack` was given."""
    found = {}
    for index, tensor in enumerate(arrays["names"].tolist()):
        stacked: dict[str, Any] = {name: arrays[name][index].copy() for name in STACKED}
        found[tensor] = Statistics(**stacked, channels=arrays[f"channels/{index}"])
    return found
