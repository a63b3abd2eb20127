"""What a result's further outputs are computed from."""

from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np

from vocabseg.runtime.masks import Masks


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


@dataclass(frozen=True, eq=False)
class GivenEvidence:
    """Evidence that is already computed."""

    masks: Masks
    class_probabilities: np.ndarray
    no_object: np.ndarray
    kernels: ModuleType
