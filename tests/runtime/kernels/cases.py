"""Inputs for the kernels' tests: both modules, random masks and pictures, and constants of the published settings."""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.masks import Masks

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32) * 255
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32) * 255
IMAGE_MEAN, IMAGE_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BOTH = ("reference", "host")


def kernels(name: str) -> ModuleType:
    return load_kernels(name)


class Case(NamedTuple):
    count: int
    mask_size: tuple[int, int]
    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    output_size: tuple[int, int]
    classes: int

    def masks(self, logits: Any) -> Masks:
        """These logits, on the host or a device, with the case's sizes."""
        return Masks(logits, self.padded_size, self.image_size, self.output_size)


CASES = {
    "one_pixel": Case(1, (1, 1), (1, 1), (1, 1), (1, 1), 1),
    "one_pixel_of_padding": Case(2, (8, 8), (32, 32), (1, 1), (5, 3), 4),
    "no_mask": Case(0, (8, 16), (32, 64), (20, 50), (11, 70), 3),
    "one_class": Case(5, (8, 8), (32, 32), (32, 32), (32, 32), 1),
    "enlarged": Case(7, (8, 16), (32, 64), (27, 61), (130, 201), 6),
    "reduced": Case(7, (24, 16), (96, 64), (90, 64), (13, 17), 5),
    "column": Case(3, (56, 8), (224, 32), (224, 2), (300, 1), 9),
    "row": Case(3, (8, 56), (32, 224), (1, 219), (1, 300), 9),
    "three_wide": Case(4, (6, 4), (24, 16), (21, 3), (33, 3), 6),
    "own_masks": Case(4, (37, 53), (37, 53), (37, 53), (37, 53), 7),
    "odd_ratio": Case(4, (5, 7), (32, 64), (31, 50), (40, 40), 7),
    "many_classes": Case(6, (8, 8), (32, 32), (30, 32), (9, 70), 3000),
}


def random_image(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def random_masks(seed: int, case: Case, dtype: type = np.float32) -> Masks:
    """Noise of different offsets, so that some masks are empty, some full and most in between.

    float32 numbers, which `dtype` can represent.
    """
    generator = np.random.default_rng(seed)
    offset = generator.normal(0, 3, (case.count, 1, 1))
    logits = (generator.normal(0, 2, (case.count, *case.mask_size)) + offset).astype(np.float32)
    return case.masks(logits.astype(dtype).astype(np.float32))


def random_probabilities(seed: int, case: Case) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(case.classes), case.count).astype(np.float32)


def cropping(size: int, threshold: float = 0.5, matting: bool = False, fill: np.ndarray = CLIP_MEAN) -> Cropping:
    return Cropping(threshold, matting, fill, CLIP_MEAN, CLIP_STD, size)


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Logits of probabilities; 0 and 1 become -+40, beyond which float32 knows nothing."""
    values = probabilities.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(values) - np.log1p(-values), -40, 40).astype(np.float32)


def worst(name: str, found: np.ndarray, wanted: np.ndarray, limit: float) -> None:
    """Fails unless every element is within `limit`; says what the worst is and where."""
    assert found.shape == wanted.shape, f"{name}: {found.shape} instead of {wanted.shape}"
    if found.size == 0:
        return
    error = np.abs(found.astype(np.float64) - wanted)
    at = np.unravel_index(int(error.argmax()), error.shape)
    assert error.max() <= limit, f"{name}: {error.max():.3g} > {limit:g} at {at}: {found[at]} instead of {wanted[at]}"
