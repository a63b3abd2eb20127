"""How regions are cut out of an image; taken by crop_regions of every kernels module."""

from typing import NamedTuple

import numpy as np


class Cropping(NamedTuple):
    """The settings of crops.

    Attributes:
        threshold: a pixel is inside if its mask probability exceeds it.
        matting: whether image and fill are blended by the mask probability instead of the thresholded mask.
        fill: (3,) 0..255, the colour outside the mask.
        mean, std: (3,) 0..255, for normalisation.
        size: side of a crop in pixels.
    """

    threshold: float
    matting: bool
    fill: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    size: int
