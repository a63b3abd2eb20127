"""How regions are cut out of an image; what crop_regions of every kernels module takes."""

from typing import NamedTuple

import numpy as np


class Cropping(NamedTuple):
    """The settings of crops.

    Attributes:
        threshold: a pixel is inside where its mask probability exceeds it.
        matting: whether the mask probability weighs image against fill, instead of the thresholded mask.
        fill: (3,) 0..255, what stands outside.
        mean, std: (3,) 0..255, of the normalisation.
        size: side of a crop in pixels.
    """

    threshold: float
    matting: bool
    fill: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    size: int
