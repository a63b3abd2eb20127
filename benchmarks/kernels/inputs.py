"""What the kernels are measured on: one image, a hundred masks and their classes, recorded or synthetic."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.masks import Masks

Array = np.ndarray

THRESHOLD = 0.5
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGE_MEAN, IMAGE_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CROP_SIZE = 224
PATCH_GRID = 14  # of ViT-B/16, along a side of the crop
# The published sizes: an image of 427 x 640 whose shorter side becomes 640, padded to a multiple of 32.
ORIGINAL, RESIZED, PADDED = (427, 640), (640, 959), (640, 960)
RECORDED = "a_r50_vitb16_vild.npz"


@dataclass(frozen=True)
class Inputs:
    """Image and masks as the proposal network leaves them.

    Attributes:
        origin: where they come from, in words.
        image: (427, 640, 3) uint8 RGB.
        resized: (640, 959, 3) uint8 RGB.
        mask_logits: (100, 160, 240) float32, over 640 x 960.
        boxes, indices: (V, 4) and (V,) int32, the regions that are cut out.
    """

    origin: str
    image: Array
    resized: Array
    mask_logits: Array
    boxes: Array
    indices: Array

    @property
    def masks(self) -> Masks:
        """The masks with all their sizes."""
        return Masks(self.mask_logits, PADDED, RESIZED, ORIGINAL)


def cropping(matting: bool = False) -> Cropping:
    """How the published settings cut regions."""
    mean = np.array(CLIP_MEAN) * 255
    return Cropping(THRESHOLD, matting, mean, mean, np.array(CLIP_STD) * 255, CROP_SIZE)


def recorded_inputs(folder: Path) -> Inputs:
    """The image, masks and 91 regions recorded from the published code; raises OutputError where the file is missing.

    The record keeps every fifth mask logit in both directions; between them they are interpolated.
    """
    path = folder / RECORDED
    if not path.is_file():
        raise OutputError(f"{path} does not exist: give the folder of the recorded values, or none for synthetic input")
    with np.load(path) as record:
        logits = np.stack([cv2.resize(mask, (240, 160)) for mask in record["pred_masks_sub"][0]])
        indices = np.flatnonzero(record["valid_0"]).astype(np.int32)
        resized = np.ascontiguousarray(record["resized_0"].transpose(1, 2, 0))
        boxes = record["boxes_0"].astype(np.int32)
        return Inputs(f"recorded ({path.name})", record["image_0"], resized, logits, boxes, indices)


def synthetic_inputs(seed: int = 0) -> Inputs:
    """A smooth image and masks of smooth outlines, of all sizes and overlapping; about nine of a hundred are empty."""
    generator = np.random.default_rng(seed)
    image = cv2.resize(generator.integers(0, 256, (14, 20, 3), np.uint8), ORIGINAL[::-1], interpolation=cv2.INTER_CUBIC)
    logits = np.stack([_blob(generator, empty=index % 11 == 10) for index in range(100)])
    kernels = load_kernels()
    resized = kernels.resize_normalize(image, RESIZED, PADDED, (0, 0, 0), (1, 1, 1))[1]
    boxes, areas = kernels.region_boxes(Masks(logits, PADDED, RESIZED, ORIGINAL), THRESHOLD)
    indices = np.flatnonzero(areas).astype(np.int32)
    return Inputs("synthetic", image, resized, logits, boxes[indices], indices)


def _blob(generator: np.random.Generator, empty: bool) -> Array:
    """Logits (160, 240): positive within an ellipse with a rough outline, down to -18 far outside."""
    rows, columns = np.mgrid[:160, :240].astype(np.float32)
    centre = generator.uniform((0, 0), (160, 240))
    radius = np.exp(generator.uniform(np.log(6), np.log(140), 2))
    distance = np.hypot((rows - centre[0]) / radius[0], (columns - centre[1]) / radius[1])
    rough = cv2.resize(generator.normal(0, 1.5, (10, 15)).astype(np.float32), (240, 160), interpolation=cv2.INTER_CUBIC)
    logits = np.clip(10 * (1 - distance) + rough, -18, 14)
    return (logits - 20 if empty else logits).astype(np.float32)


def class_probabilities(classes: int, decided: bool, seed: int = 0) -> Array:
    """(100, classes) float32, rows sum to 1: softmax of noise as wide as cosines at temperature 100 have it.

    Undecided ones are nearly equal, as of a model that was not trained: then every class may win every pixel.
    """
    noise = np.random.default_rng(seed).standard_normal((100, classes), np.float32) * np.float32(4 if decided else 0.1)
    powers = np.exp(noise - noise.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
