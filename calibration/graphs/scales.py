"""How a graph is quantised: a method of choosing scales, the layers that stay high, and the smoothing of outliers."""

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from vocabseg.calibration.graphs.linear_nodes import LinearNode
from vocabseg.calibration.graphs.thresholds import METHODS
from vocabseg.calibration.observe.statistics import Statistics

# The largest magnitude of each type.
LARGEST = {"int8": 127.0, "fp8": 448.0}


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """How one graph is quantised.

    Attributes:
        kind: "int8" or "fp8" (E4M3).
        method: how an activation's largest kept magnitude is found, one of `thresholds.METHODS`.
        smooth: SmoothQuant's alpha, the share of the activations' outliers that moves into the weights; None for none.
        high: layers that stay in float32.
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
    nodes: Iterable[LinearNode], statistics: Mapping[str, Statistics], scheme: Scheme
) -> dict[str, np.float32]:
    """The scale of every activation that is to be quantised; one that was always 0, or not finite, has none."""
    threshold = METHODS[scheme.method]
    scales = {}
    for activation in dict.fromkeys(node.activation for node in nodes if node.layer not in scheme.high):
        seen = statistics.get(activation)
        if seen is not None and seen.values and not seen.broken and seen.largest > 0:
            scales[activation] = np.float32(threshold(seen) / LARGEST[scheme.kind])
    return scales


def weight_scales(weights: np.ndarray, axis: int, kind: str) -> np.ndarray:
    """(C,) float32, one scale per output channel; an all-zero channel gets the smallest scale that is safe."""
    others = tuple(index for index in range(weights.ndim) if index != axis)
    largest = np.abs(weights).max(axis=others)
    return np.maximum(largest / LARGEST[kind], np.float32(1e-10)).astype(np.float32)


def quantised_weights(weights: np.ndarray, scales: np.ndarray, axis: int, kind: str) -> np.ndarray:
    """The weights in int8 or E4M3, of the same shape."""
    shape = [1] * weights.ndim
    shape[axis] = -1
    scaled = weights / scales.reshape(shape)
    if kind == "int8":
        return np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    return to_fp8(scaled)


def to_fp8(values: np.ndarray) -> np.ndarray:
    """E4M3 without infinities (float8_e4m3fn), rounded to the nearest and clipped to +-448."""
    import ml_dtypes

    return np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn)
