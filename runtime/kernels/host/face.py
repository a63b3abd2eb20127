"""The kernels on the CPU: the functions of reference.py on top of an extension that runs pixel_math.h in threads.

Results do not depend on the number of threads, which is the argument `threads`, else the environment variable
VOCABSEG_THREADS, else the number of CPUs that the process may use. Nor do they depend on the processor: the inner loops
are compiled for several instruction sets, "variants", which compute the same bits. The best supported one is used, or
the one that the environment variable VOCABSEG_ISA names when this module is first imported.
"""

import os
from collections.abc import Sequence

import numpy as np

from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels import checks, reference
from vocabseg.runtime.kernels.checks import Array
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.kernels.host import _native
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.threads import thread_count


def variants() -> list[str]:
    """The variants that this processor can run, oldest instruction set first.

    On x86-64 they are the levels "v2" (SSE4.2), "v3" (AVX2) and "v4" (AVX-512); elsewhere there is one, "baseline".
    """
    return _native.variants()


def variant() -> str:
    """The variant in use."""
    return _native.variant()


def choose_variant(name: str) -> None:
    """Use one of variants() from the next call on, in all threads. Raises EngineError for another name."""
    if name not in variants():
        raise EngineError(
            f"no kernels for the instruction set {name!r}: choose one of {', '.join(variants())} (VOCABSEG_ISA)"
        )
    _native.choose_variant(name)


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
    _native.resize_normalize(
        image, (h, w), (padded_h, padded_w), mean, std, thread_count(threads), network_input, resized
    )
    return network_input, resized


def region_boxes(masks: Masks, threshold: float, *, threads: int | None = None) -> tuple[Array, Array]:
    """Tight boxes (N, 4) int32 [x1, y1, x2, y2) and areas (N,) int32; see reference.region_boxes."""
    masks = checks.masks(masks)
    boxes, areas = np.empty((len(masks), 4), np.int32), np.empty(len(masks), np.int32)
    sizes = masks.padded_size, masks.image_size
    _native.region_boxes(masks.logits, *sizes, float(threshold), thread_count(threads), boxes, areas)
    return boxes, areas


def region_bits(masks: Masks, threshold: float, *, threads: int | None = None) -> Array:
    """Packed masks (N, h, ceil(w / 32)) uint32; see reference.region_bits."""
    masks = checks.masks(masks)
    h, w = masks.image_size
    bits = np.zeros((len(masks), h, -(-w // 32)), np.uint32)
    sizes = masks.padded_size, masks.image_size
    _native.region_bits(masks.logits, *sizes, float(threshold), thread_count(threads), bits)
    return bits


def crop_regions(
    image: Array, masks: Masks, boxes: Array, indices: Array, cropping: Cropping, *, threads: int | None = None
) -> Array:
    """Crops (V, 3, S, S) float32; see reference.crop_regions."""
    masks, cropping = checks.masks(masks), checks.cropping(cropping)
    image, (boxes, indices) = checks.image_of(image, masks), checks.regions(boxes, indices, masks)
    crops = np.empty((len(boxes), 3, cropping.size, cropping.size), np.float32)
    _native.crop_regions(
        image, masks.logits, masks.padded_size, boxes, indices, cropping.threshold, cropping.matting, cropping.fill,
        cropping.mean, cropping.std, thread_count(threads), crops,
    )  # fmt: skip
    return crops


def patch_masks(
    masks: Masks, boxes: Array, indices: Array, cropping: Cropping, grid: int, *, threads: int | None = None
) -> Array:
    """Patches (V, grid, grid) float32 that hold a pixel of the region, 0 or 1; see reference.patch_masks."""
    masks, cropping = checks.masks(masks), checks.cropping(cropping)
    boxes, indices = checks.regions(boxes, indices, masks)
    grid = checks.patch_grid(grid, cropping.size)
    patches = np.empty((len(boxes), grid, grid), np.float32)
    _native.patch_masks(
        masks.logits, masks.padded_size, masks.image_size, boxes, indices, cropping.threshold, cropping.matting,
        cropping.size, thread_count(threads), patches,
    )  # fmt: skip
    return patches


def compose(masks: Masks, class_probabilities: Array, *, threads: int | None = None) -> tuple[Array, Array]:
    """Labels (H, W) int32 and the winning scores (H, W) float32; see reference.compose."""
    masks = checks.masks(masks)
    probabilities = checks.probabilities(class_probabilities, len(masks))
    labels, scores = np.empty(masks.output_size, np.int32), np.empty(masks.output_size, np.float32)
    sizes = masks.padded_size, masks.image_size
    _native.compose(masks.logits, probabilities, *sizes, thread_count(threads), labels, scores)
    return labels, scores


def class_scores(masks: Masks, class_probabilities: Array, *, threads: int | None = None) -> Array:
    """The score of every class at every pixel, (C, H, W) float32; see reference.class_scores."""
    masks = checks.masks(masks)
    probabilities = checks.probabilities(class_probabilities, len(masks))
    scores = np.empty((probabilities.shape[1], *masks.output_size), np.float32)
    sizes = masks.padded_size, masks.image_size
    _native.class_scores(masks.logits, probabilities, *sizes, thread_count(threads), scores)
    return scores


def resample_masks(masks: Masks, *, threads: int | None = None) -> Array:
    """Mask probabilities (M, H, W) float32, exactly those that compose weights; see reference.resample_masks."""
    masks = checks.masks(masks)
    probabilities = np.empty((len(masks), *masks.output_size), np.float32)
    sizes = masks.padded_size, masks.image_size
    _native.resample_masks(masks.logits, *sizes, thread_count(threads), probabilities)
    return probabilities


def resample_masks_at(masks: Masks, rows: Sequence[int] | Array, columns: Sequence[int] | Array) -> Array:
    """Mask probabilities (M, R, C) float32 at some rows and columns; too few for threads: see reference."""
    return reference.resample_masks_at(masks, rows, columns)


if os.environ.get("VOCABSEG_ISA", "").strip():
    choose_variant(os.environ["VOCABSEG_ISA"].strip())
