"""What a result's further outputs are computed from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Protocol

import numpy as np

from vocabseg.runtime.masks import Masks


@dataclass(frozen=True, eq=False)
class Opinions:
    """What the class probabilities of M masks were made of, on both sides of the ensemble.

    A class probability is query ** query_power * clip ** (1 - query_power); a side that is missing counts as 1.

    Attributes:
        numbers: (M,) int64, the masks' places among all masks of the image.
        query: (M, C) float32, by the query embeddings, "no object" aside; None for user-supplied masks.
        clip: (M, C) float32, by the image encoder, NaN where a mask is empty after thresholding and has no crop; None
            if no crop was encoded.
        query_power: (C,) float32.
        seen: (C,) bool, whether a class was seen in training.
        boxes: (M, 4) float32, tight [x1, y1, x2, y2) in pixels of the original image; zeros for an empty mask.
        areas: (M,) int64, the pixels above the threshold, scaled to the original image; -1 for a mask that the region
            budget dropped.
        crops: (M,) int64, the number of the mask whose crop the image encoder saw: the mask's own, unless it shares
            the embedding of another under a region budget; -1 where there is none.
    """

    numbers: np.ndarray
    query: np.ndarray | None
    clip: np.ndarray | None
    query_power: np.ndarray
    seen: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crops: np.ndarray | None = None  # of older pickles

    def shares(self, row: int) -> int | None:
        """The mask whose crop stands for that of a row; None where it has its own, or none."""
        crop = -1 if self.crops is None else int(self.crops[row])
        return None if crop in (-1, int(self.numbers[row])) else crop


class Evidence(Protocol):
    """What a result is computed from: M masks, their class probabilities, and the kernels that resample them."""

    @property
    def masks(self) -> Masks: ...
    @property
    def class_probabilities(self) -> np.ndarray: ...  # (M, C) float32
    @property
    def no_object(self) -> np.ndarray: ...  # (M,) float32, the probability that a query is "no object"
    @property
    def kernels(self) -> ModuleType: ...
    @property
    def opinions(self) -> Opinions | None: ...  # None where only the probabilities are known
    @property
    def crops(self) -> int | None: ...  # how many the image encoder was given; None where that is not known


@dataclass(frozen=True, eq=False)
class GivenEvidence:
    """Evidence that is already computed, except for the opinions, which `form_opinions` computes on first access."""

    masks: Masks
    class_probabilities: np.ndarray
    no_object: np.ndarray
    kernels: ModuleType
    form_opinions: Callable[[], Opinions | None] = lambda: None
    crops: int | None = None

    @cached_property
    def opinions(self) -> Opinions | None:
        return self.form_opinions()
