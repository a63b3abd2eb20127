"""How a graph is quantised: a method of choosing scales, what stays high, and the smoothing of outliers."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from vocabseg.calibration.statistics import Statistics
from vocabseg.calibration.targets import Target
from vocabseg.calibration.thresholds import METHODS

# The largest magnitude of each type.
LARGEST = {"int8": 127.0, "fp8": 448.0}


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """How one graph is quantised.

    Attributes:
        kind: "int8" or "fp8" (E4M3).
        method: how an activation's largest kept magnitude is found, of `thresholds.METHODS`.
        smooth: SmoothQuant's alpha, how much of the activations' outliers moves into the weights; None for not at all.
        high: layers that stay as they are.
    """

    kind: str = "int8"
    method: str = "max"
    smooth: float | None = None
    high: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Short, for tables: "int8 max, smooth 0.5"."""
        return f"{self.kind} {self.method}" + (f", smooth {self.smooth:g}" if self.smooth is not None else "")


def activation_scales(
    found: Iterable[Target], statistics: Mapping[str, Statistics], scheme: Scheme
) -> dict[str, np.float32]:
    """The scale of every activation that is to be quantised; those that were always 0, or not finite, have none."""
    threshold = METHODS[scheme.method]
    scales = {}
    for target in found:
        seen = statistics.get(target.activation)
        if target.layer in scheme.high or seen is None or not seen.values or seen.broken or seen.largest <= 0:
            continue
        if target.activation not in scales:
            scales[target.activation] = np.float32(threshold(seen) / LARGEST[scheme.kind])
    return scales


def weight_scales(weights: np.ndarray, axis: int, kind: str) -> np.ndarray:
    """(C,) float32, one scale per output channel; a channel without weights gets the smallest one that is safe."""
    others = tuple(index for index in range(weights.ndim) if index != axis)
    largest = np.abs(weights).max(axis=others)
    return np.maximum(largest / LARGEST[kind], np.float32(1e-10)).astype(np.float32)


def quantised_weights(weights: np.ndarray, scales: np.ndarray, axis: int, kind: str) -> np.ndarray:
    """The weights in int8 or E4M3 of the same shape."""
    shape = [1] * weights.ndim
    shape[axis] = -1
    scaled = weights / scales.reshape(shape)
    if kind == "int8":
        return np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    return to_fp8(scaled)


def to_fp8(values: np.ndarray) -> np.ndarray:
    """E4M3 without infinities (float8_e4m3fn), rounded to the nearest; beyond 448 the largest number is kept."""
    import ml_dtypes

    return np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn)


def describe(scheme: Scheme) -> dict[str, Any]:
    """The scheme as plain types, for a manifest."""
    return msgspec.to_builtins(scheme)
