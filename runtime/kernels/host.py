"""The kernels on the CPU: the functions of reference.py over the extension `_host`, which runs pixel_math.h in threads.

Results do not depend on the number of threads, which is the argument `threads`, else the environment variable
VOCABSEG_THREADS, else the number of CPUs that the process may use. Nor do they depend on the processor: the inner loops
are compiled for several instruction sets, "variants", which give the same bits. The best one that the processor has is
used, or the one that the environment variable VOCABSEG_ISA names when this module is first imported.
"""

import os
from collections.abc import Sequence

import numpy as np

from vocabseg.runtime import _host
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels import checks
from vocabseg.runtime.kernels.checks import Array
from vocabseg.runtime.threads import thread_count


def variants() -> list[str]:
    """The variants that this processor can run, the oldest instruction set first.

    On x86-64 they are the levels "v2" (SSE4.2), "v3" (AVX2) and "v4" (AVX-512); elsewhere there is one, "baseline".
    """
    return _host.variants()


def variant() -> str:
    """The variant in use."""
    return _host.variant()


def choose_variant(name: str) -> None:
    """Use one of variants() from the next call on, in all threads. Raises EngineError for another name."""
    if name not in variants():
        raise EngineError(
            f"no kernels for the instruction set {name!r}: choose one of {', '.join(variants())} (VOCABSEG_ISA)"
        )
    _host.choose_variant(name)


def resize_normalize(
    image: Array,
    size: Sequence[int],
    padded_size: Sequence[int],
    mean: object,
    std: object,
    *,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """Network input (1, 3, Hp, Wp) float32 and resized image (h, w, 3) uint8; see reference.resize_normalize."""
    image = checks.image(image)
    (h, w), (padded_h, padded_w) = checks.sizes(size, padded_size)
    network_input = np.empty((1, 3, padded_h, padded_w), np.float32)
    resized = np.empty((h, w, 3), np.uint8)
    mean, std = checks.colour("mean", mean), checks.deviation(std)
    _host.resize_normalize(
        image, (h, w), (padded_h, padded_w), mean, std, thread_count(threads), network_input, resized
    )
    return network_input, resized


def region_boxes(
    mask_logits: Array,
    padded_size: Sequence[int],
    image_size: Sequence[int],
    threshold: float,
    *,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """Tight boxes (N, 4) int32 [x1, y1, x2, y2) and areas (N,) int32; see reference.region_boxes."""
    masks = checks.masks(mask_logits)
    image_size, padded_size = checks.sizes(image_size, padded_size)
    boxes = np.empty((len(masks), 4), np.int32)
    areas = np.empty(len(masks), np.int32)
    _host.region_boxes(masks, padded_size, image_size, float(threshold), thread_count(threads), boxes, areas)
    return boxes, areas


def crop_regions(
    image: Array,
    mask_logits: Array,
    padded_size: Sequence[int],
    boxes: Array,
    indices: Array,
    threshold: float,
    matting: bool,
    fill: object,
    mean: object,
    std: object,
    crop_size: int,
    *,
    threads: int | None = None,
) -> Array:
    """Crops (V, 3, S, S) float32; see reference.crop_regions."""
    image, masks = checks.image(image), checks.masks(mask_logits)
    image_size, padded_size = checks.sizes(image.shape[:2], padded_size)
    boxes, indices = checks.regions(boxes, indices, image_size, len(masks))
    side = checks.crop_size(crop_size)
    crops = np.empty((len(boxes), 3, side, side), np.float32)
    fill, mean, std = checks.colour("fill", fill), checks.colour("mean", mean), checks.deviation(std)
    _host.crop_regions(
        image, masks, padded_size, boxes, indices, float(threshold), bool(matting), fill, mean, std,
        thread_count(threads), crops,
    )  # fmt: skip
    return crops


def compose(
    mask_logits: Array,
    class_probabilities: Array,
    padded_size: Sequence[int],
    image_size: Sequence[int],
    output_size: Sequence[int],
    *,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """Labels (H, W) int32 and the winning scores (H, W) float32; see reference.compose."""
    masks = checks.masks(mask_logits)
    image_size, padded_size = checks.sizes(image_size, padded_size)
    output_size = checks.size("output size", output_size)
    probabilities = checks.probabilities(class_probabilities, len(masks))
    labels, scores = np.empty(output_size, np.int32), np.empty(output_size, np.float32)
    _host.compose(masks, probabilities, padded_size, image_size, thread_count(threads), labels, scores)
    return labels, scores


def class_scores(
    mask_logits: Array,
    class_probabilities: Array,
    padded_size: Sequence[int],
    image_size: Sequence[int],
    output_size: Sequence[int],
    *,
    threads: int | None = None,
) -> Array:
    """The score of every class at every pixel, (C, H, W) float32; see reference.class_scores."""
    masks = checks.masks(mask_logits)
    image_size, padded_size = checks.sizes(image_size, padded_size)
    output_size = checks.size("output size", output_size)
    probabilities = checks.probabilities(class_probabilities, len(masks))
    scores = np.empty((probabilities.shape[1], *output_size), np.float32)
    _host.class_scores(masks, probabilities, padded_size, image_size, thread_count(threads), scores)
    return scores


def resample_masks(
    mask_logits: Array,
    padded_size: Sequence[int],
    image_size: Sequence[int],
    output_size: Sequence[int],
    *,
    threads: int | None = None,
) -> Array:
    """Mask probabilities (M, H, W) float32, the very values that compose weighs; see reference.resample_masks."""
    masks = checks.masks(mask_logits)
    image_size, padded_size = checks.sizes(image_size, padded_size)
    output_size = checks.size("output size", output_size)
    probabilities = np.empty((len(masks), *output_size), np.float32)
    _host.resample_masks(masks, padded_size, image_size, thread_count(threads), probabilities)
    return probabilities


if os.environ.get("VOCABSEG_ISA", "").strip():
    choose_variant(os.environ["VOCABSEG_ISA"].strip())
