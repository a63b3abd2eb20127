"""The extension built from native.cpp; face.py checks the arguments and allocates the results."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Size = tuple[int, int]

def resize_normalize(
    image: Array,
    size: Size,
    padded_size: Size,
    mean: Array,
    std: Array,
    threads: int,
    network_input: Array,
    resized: Array,
) -> None: ...
def region_boxes(
    mask_logits: Array,
    padded_size: Size,
    image_size: Size,
    threshold: float,
    threads: int,
    boxes: Array,
    areas: Array,
) -> None: ...
def region_bits(
    mask_logits: Array, padded_size: Size, image_size: Size, threshold: float, threads: int, bits: Array
) -> None: ...
def crop_regions(
    image: Array,
    mask_logits: Array,
    padded_size: Size,
    boxes: Array,
    indices: Array,
    threshold: float,
    matting: bool,
    fill: Array,
    mean: Array,
    std: Array,
    threads: int,
    crops: Array,
) -> None: ...
def patch_masks(
    mask_logits: Array,
    padded_size: Size,
    image_size: Size,
    boxes: Array,
    indices: Array,
    threshold: float,
    matting: bool,
    size: int,
    threads: int,
    patches: Array,
) -> None: ...
def compose(
    mask_logits: Array,
    class_probabilities: Array,
    padded_size: Size,
    image_size: Size,
    threads: int,
    labels: Array,
    scores: Array,
) -> None: ...
def class_scores(
    mask_logits: Array,
    class_probabilities: Array,
    padded_size: Size,
    image_size: Size,
    threads: int,
    scores: Array,
) -> None: ...
def resample_masks(
    mask_logits: Array, padded_size: Size, image_size: Size, threads: int, probabilities: Array
) -> None: ...
def variants() -> list[str]: ...
def variant() -> str: ...
def choose_variant(name: str) -> None: ...
