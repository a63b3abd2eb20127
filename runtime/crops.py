"""Regions -> the image encoder's input, by a bundle's settings."""

from types import ModuleType

import numpy as np

from vocabseg.runtime.bundle import RegionSpec
from vocabseg.runtime.geometry import expand_boxes


def cut_crops(
    kernels: ModuleType,
    spec: RegionSpec,
    resized: np.ndarray,
    mask_logits: np.ndarray,
    padded: tuple[int, int],
    boxes: np.ndarray,
    indices: np.ndarray,
) -> np.ndarray:
    """Crops (V, 3, S, S) float32 of V regions.

    resized (h, w, 3) uint8 RGB, mask_logits (N, hm, wm) float32 over `padded` (Hp, Wp), boxes (V, 4) int32 the tight
    ones, indices (V,) which mask belongs to each.
    """
    mean = np.array(spec.mean) * 255
    return kernels.crop_regions(
        resized,
        mask_logits,
        padded,
        expand_boxes(boxes, spec.expand_ratio, (resized.shape[0], resized.shape[1])),
        indices.astype(np.int32),
        spec.mask_threshold,
        spec.matting,
        mean if spec.mask_fill == "mean" else np.zeros(3),
        mean,
        np.array(spec.std) * 255,
        spec.crop_size,
    )
