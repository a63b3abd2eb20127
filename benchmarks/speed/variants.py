"""What is measured against each other: variants behind one small interface."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vocabseg.runtime.masks import Masks, Size
from vocabseg.runtime.segmenter.stages import Mark


@dataclass(frozen=True)
class TimedRun:
    """Seconds of one run from the image file to its labels, by stage and in all; how many regions it had, and crops."""

    stages: dict[str, float]
    total: float
    regions: int
    crops: int


@dataclass(frozen=True)
class Capture:
    """What every stage gave for one image; N masks, V of them valid, K classes.

    Attributes:
        resized: (h, w, 3) uint8 RGB.
        network_input: (1, 3, Hp, Wp) float32.
        mask_logits: (N, hm, wm) float32; query_embeddings: (N, D) float32, None without queries.
        valid: (N,) bool; boxes: (V, 4) int, tight.
        crops: (V, 3, S, S) float32 and embeddings: (V, D) float32; None where no crop was encoded.
        patch_masks: (V, G, G) float32 of 0 and 1; None where the image encoder takes crops alone.
        probabilities: (M, K) float32 of the masks `voters` (M,).
        labels: (H, W) int32; margin: (H, W) float32, by how much the best class leads at each pixel.
    """

    resized: np.ndarray
    network_input: np.ndarray
    mask_logits: np.ndarray
    query_embeddings: np.ndarray | None
    valid: np.ndarray
    boxes: np.ndarray
    crops: np.ndarray | None
    embeddings: np.ndarray | None
    probabilities: np.ndarray
    voters: np.ndarray
    labels: np.ndarray
    margin: np.ndarray
    patch_masks: np.ndarray | None = None

    @property
    def padded(self) -> Size:
        """(Hp, Wp)."""
        return self.network_input.shape[2], self.network_input.shape[3]

    @property
    def size(self) -> Size:
        """(h, w)."""
        return self.resized.shape[0], self.resized.shape[1]

    @property
    def masks(self) -> Masks:
        """The masks as the networks saw the image, so at its size there."""
        return Masks(self.mask_logits, self.padded, self.size, self.size)


class Variant(Protocol):
    """A model that is open and ready to run; images are files.

    Methods:
        run: segment one image, timed.
        capture: segment one image and keep everything.
        capture_from: every stage on its own: proposals from the given network input, and from the given proposals all
            that follows.
        many: seconds of segmenting several images in one go.
        labels: the label map (H, W) int32 of one image.
        text: seconds that encoding these names takes, nothing remembered.
    """

    def run(self, image: Path) -> TimedRun: ...
    def capture(self, image: Path) -> Capture: ...
    def capture_from(self, image: Path, given: Capture) -> Capture: ...
    def many(self, images: Sequence[Path]) -> float: ...
    def labels(self, image: Path) -> np.ndarray: ...
    def text(self, names: Sequence[str]) -> float: ...


class VariantSpec(Protocol):
    """A variant that can be opened, in another process too; one with a `limit`, only there (`workers.limited`)."""

    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def limit(self) -> str: ...
    def open(self) -> Variant: ...


# What a variant may be held to, and the environment that does it: oneDNN multiplies for OpenVINO and PyTorch.
LIMITS = {
    "1-thread": {"VOCABSEG_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    "no-amx": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
}


def variant_name(name: str, precision: str, limit: str = "") -> str:
    """The name, with the limit if there is one, and the precision where that is not the usual one."""
    limited = f"{name}@{limit}" if limit else name
    return limited if precision == "float32" else f"{limited} {precision}"


def lead(scores: np.ndarray) -> np.ndarray:
    """By how much the best class leads: (K, H, W) -> (H, W) float32; infinite where there is no second class."""
    if len(scores) < 2:
        return np.full(scores.shape[1:], np.inf, np.float32)
    best = np.partition(scores, -2, axis=0)[-2:]
    return (best[1] - best[0]).astype(np.float32)


class Timeline:
    """An observer of the pipeline's own stages: their marks, and with `keep` copies of what they gave, by name."""

    def __init__(self, keep: bool = False):
        self.keep = keep
        self.kept: dict[str, list[np.ndarray]] = {}
        self._stages: list[tuple[str, Mark, Mark]] = []

    def stage(self, name: str, begin: Mark, end: Mark) -> None:
        """One run of a stage."""
        self._stages.append((name, begin, end))

    def note(self, name: str, arrays: Mapping[str, Any]) -> None:
        """What a stage gave; its buffers are used again, so it is copied now."""
        if self.keep:
            for key, array in arrays.items():
                host = array.to_host() if hasattr(array, "to_host") else np.array(array)
                self.kept.setdefault(key, []).append(host)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage; waits for the last mark."""
        found: dict[str, float] = {}
        for name, begin, end in self._stages:
            end.synchronize()
            found[name] = found.get(name, 0.0) + end.elapsed_since(begin) / 1000
        return found
