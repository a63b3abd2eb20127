"""How far a changed graph is from its float32 original, on inputs that it was not calibrated on."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from vocabseg.calibration.observe.tensor_observer import Feed, open_session

# Worse than any loss; a number, since JSON has no infinity and shares of it would be none.
BROKEN = 1e6


class Fidelity(msgspec.Struct, frozen=True):
    """Attributes:
    cosine, worst: mean and least cosine of the output vectors (embeddings, query embeddings) with the original's.
    masks: mean difference of the mask probabilities; 0 for a graph without masks.
    relative: mean length of the vectors' differences over the original's; it sees a wrong length, too.
    finite: whether every output was a number; otherwise `relative` is BROKEN.
    """

    cosine: float
    worst: float
    masks: float = 0.0
    relative: float = 0.0
    finite: bool = True

    @property
    def loss(self) -> float:
        """One number to compare by: the mean of 1 - cosine, plus the masks' difference; BROKEN if not finite."""
        return 1 - self.cosine + self.masks if self.finite else BROKEN

    def figures(self) -> dict[str, float]:
        """For a manifest, with significant digits only."""
        masks = float(f"{self.masks:.3g}")
        return {"cosine": round(self.cosine, 6), "worst_cosine": round(self.worst, 6), "masks": masks}


class Comparator:
    """Compares graphs with the one at `path` on `feeds`; outputs go by name, so a changed graph keeps them."""

    def __init__(self, path: Path, feeds: Sequence[Feed]):
        session = open_session(path)
        self.feeds = list(feeds)
        self.names = [output.name for output in session.get_outputs()]
        self.wanted = [_floats(session.run(self.names, dict(feed))) for feed in self.feeds]

    def fidelity(self, path: Path, feeds: int | None = None) -> Fidelity:
        """Of the graph at `path`, on the first `feeds` feeds, or all."""
        session = open_session(path, literal=True)
        halves = [argument.name for argument in session.get_inputs() if argument.type == "tensor(float16)"]
        found = []
        for feed in self.feeds[:feeds]:
            given = {name: array.astype(np.float16) if name in halves else array for name, array in feed.items()}
            found.append(_floats(session.run(self.names, given)))
        return compare(self.wanted[: len(found)], found)


def compare(wanted: Sequence[Sequence[np.ndarray]], found: Sequence[Sequence[np.ndarray]]) -> Fidelity:
    """Outputs of several runs against those they should be: maps have four axes, vectors fewer."""
    cosines, masks, relatives = [], [], []
    for right, given in zip(wanted, found, strict=True):
        for one, other in zip(right, given, strict=True):
            if not np.isfinite(other).all():
                return Fidelity(-1.0, -1.0, 1.0, BROKEN, finite=False)
            if one.ndim == 4:
                masks.append(float(np.abs(_sigmoid(one) - _sigmoid(other)).mean()))
            else:
                cosines.append(cosine(one, other))
                relatives.append(_relative(one, other))
    together = np.concatenate(cosines) if cosines else np.ones(1)
    masks, relatives = masks or [0.0], relatives or [0.0]
    return Fidelity(float(together.mean()), float(together.min()), float(np.mean(masks)), float(np.mean(relatives)))


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosines of the vectors along the last axis, (V,) float64; 1 where both are 0."""
    a = one.reshape(-1, one.shape[-1]).astype(np.float64)
    b = other.reshape(-1, other.shape[-1]).astype(np.float64)
    left, right = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    lengths = left * right
    return np.where((left == 0) & (right == 0), 1.0, (a * b).sum(1) / np.where(lengths > 0, lengths, 1))


def _relative(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1)
    return float((np.linalg.norm(a - b, axis=-1) / np.where(lengths > 0, lengths, 1)).mean())


def _floats(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(array, np.float32) for array in arrays]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -60, 60)))
