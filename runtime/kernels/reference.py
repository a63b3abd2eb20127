"""The kernels as a specification: plain NumPy, written to be read and compared with, not to be fast.

Masks are logits (N, h, w) float32 that cover the padded image; the image is its top left part.
pixel_math.h has the same formulas for the host and the device.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import numpy as np

from vocabseg.runtime.kernels import checks
from vocabseg.runtime.kernels.checks import Array
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.masks import Masks

TRIANGLE_BITS = 22  # fraction bits of Pillow's weights: 8 bits of pixel and 2 of headroom fit a 32-bit sum


def resize_normalize(
    image: Array, size: Sequence[int], padded_size: Sequence[int], mean: object, std: object
) -> tuple[Array, Array]:
    """Pillow's bilinear resize of an image, bit for bit, and the same normalised and padded with zeros.

    Rows are resampled first, then columns, as in Pillow up to version 12; from 13 on it resamples very tall images in
    the other order, which differs by rounding.

    image (H, W, 3) uint8 RGB; size (h, w); padded_size (Hp, Wp), not smaller; mean and std (3,), 0..255.
    Returns network_input (1, 3, Hp, Wp) float32 and resized (h, w, 3) uint8. Raises ValueError.
    """
    image = checks.image(image)
    (h, w), (padded_h, padded_w) = checks.sizes(size, padded_size)
    mean, std = checks.colour("mean", mean), checks.deviation(std)
    columns, rows = triangle_weights(image.shape[1], w), triangle_weights(image.shape[0], h)
    narrow = _round_fixed(np.einsum("yxc,ox->yoc", image.astype(np.int64), columns, optimize=True))
    resized = _round_fixed(np.einsum("yxc,oy->oxc", narrow.astype(np.int64), rows, optimize=True))
    network_input = np.zeros((1, 3, padded_h, padded_w), np.float32)
    network_input[0, :, :h, :w] = ((resized.astype(np.float32) - mean) / std).transpose(2, 0, 1)
    return network_input, resized


def region_boxes(masks: Masks, threshold: float) -> tuple[Array, Array]:
    """Bounding boxes and areas of the masks whose probability exceeds the threshold, in pixels of the image size.

    Returns boxes (N, 4) int32 [x1, y1, x2, y2), all zero if no pixel does, and areas (N,) int32. Raises ValueError.
    """
    masks = checks.masks(masks)
    boxes, areas = np.zeros((len(masks), 4), np.int32), np.zeros(len(masks), np.int32)
    for index, mask in enumerate(masks.logits):
        inside = upsample(mask, masks.padded_size, masks.image_size) > threshold_logit(threshold)
        areas[index] = inside.sum()
        if inside.any():
            xs, ys = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
            boxes[index] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes, areas


def region_bits(masks: Masks, threshold: float) -> Array:
    """The masks that region_boxes finds, packed: pixel x is bit x % 32 of word x // 32 of its row, bits beyond are 0.

    Returns (N, h, ceil(w / 32)) uint32. Raises ValueError.
    """
    masks = checks.masks(masks)
    h, w = masks.image_size
    words = -(-w // 32)
    bits = np.zeros((len(masks), h, words), np.uint32)
    for index, mask in enumerate(masks.logits):
        inside = np.zeros((h, 32 * words), bool)
        inside[:, :w] = upsample(mask, masks.padded_size, masks.image_size) > threshold_logit(threshold)
        bits[index] = np.packbits(inside, axis=1, bitorder="little").view("<u4")
    return bits


def crop_regions(image: Array, masks: Masks, boxes: Array, indices: Array, cropping: Cropping) -> Array:
    """Cut regions out of the image, fill the pixels outside the mask, normalise, and resize bicubically to a square.

    image (h, w, 3) uint8 RGB, of the masks' image size; boxes (V, 4) int32 inside the image, not empty; indices (V,)
    int32: the mask of each. Returns (V, 3, size, size) float32. Raises ValueError.
    """
    masks = checks.masks(masks)
    image, (boxes, indices) = checks.image_of(image, masks), checks.regions(boxes, indices, masks)
    threshold, matting, fill, mean, std, side = checks.cropping(cropping)
    crops = np.empty((len(boxes), 3, side, side), np.float32)
    for region, ((x1, y1, x2, y2), index) in enumerate(zip(boxes, indices, strict=True)):
        logits = upsample(masks.logits[index], masks.padded_size, masks.image_size)[y1:y2, x1:x2]
        coverage = sigmoid(logits) if matting else (logits > threshold_logit(threshold)).astype(np.float32)
        coverage = coverage[..., None]
        cut = image[y1:y2, x1:x2] * coverage + (np.float32(1) - coverage) * fill
        normalised = (cut - mean) / std
        crops[region] = bicubic(normalised.transpose(2, 0, 1), (side, side))
    return crops


def patch_masks(masks: Masks, boxes: Array, indices: Array, cropping: Cropping, grid: int) -> Array:
    """Which patches of a crop hold a pixel of its region, for image encoders that take mask prompts.

    A crop has grid x grid patches of size // grid pixels. The region's mask is cut out like the image and resized to
    the crop with its nearest pixels; a patch counts if any of its pixels does. With matting the mask is the
    probability, of which every pixel above 0 counts.

    boxes (V, 4) int32 inside the image, not empty; indices (V,) int32: the mask of each. Returns (V, grid, grid)
    float32, 0 or 1. Raises ValueError. Source: F. Liang et al., "Open-Vocabulary Semantic Segmentation with
    Mask-adapted CLIP", 2023, and its published code, which rounds the averages of the patches up.
    """
    masks = checks.masks(masks)
    boxes, indices = checks.regions(boxes, indices, masks)
    cropping = checks.cropping(cropping)
    grid, limit = checks.patch_grid(grid, cropping.size), patch_limit(cropping.threshold, cropping.matting)
    patch = cropping.size // grid
    patches = np.empty((len(boxes), grid, grid), np.float32)
    for region, ((x1, y1, x2, y2), index) in enumerate(zip(boxes, indices, strict=True)):
        inside = upsample(masks.logits[index], masks.padded_size, masks.image_size)[y1:y2, x1:x2] > limit
        rows, columns = (nearest_indices(side, cropping.size)[: grid * patch] for side in inside.shape)
        resized = inside[rows][:, columns].reshape(grid, patch, grid, patch)
        patches[region] = resized.any(axis=(1, 3))
    return patches


def resample_masks(masks: Masks) -> Array:
    """Mask probabilities at the output size: logits bilinearly to image size, sigmoid, bilinearly to output size.

    Returns (M, H, W) float32. Raises ValueError.
    """
    masks = checks.masks(masks)
    size = masks.output_size
    probabilities = np.empty((len(masks), *size), np.float32)
    for index, mask in enumerate(masks.logits):
        probabilities[index] = upsample(sigmoid(upsample(mask, masks.padded_size, masks.image_size)), size, size)
    return probabilities


def resample_masks_at(masks: Masks, rows: Sequence[int] | Array, columns: Sequence[int] | Array) -> Array:
    """What resample_masks gives at the crossings of some rows (R,) and columns (C,) of the output.

    Returns (M, R, C) float32, at a cost that does not depend on the output's size. Raises ValueError.
    """
    return resample_maps_at(checks.masks(masks), rows, columns, sigmoid)


def resample_maps_at(
    maps: Masks, rows: Sequence[int] | Array, columns: Sequence[int] | Array, between: Callable[[Array], Array]
) -> Array:
    """Maps bilinearly to the image size, there through the function `between`, and bilinearly to the output size.

    Returns (M, R, C) float32 at the crossings of some rows (R,) and columns (C,) of the output.
    """

    def taps(axis: int, wanted: Array) -> tuple[list[Array], list[Array]]:
        """Of the maps for the needed pixels of the image size, and of those pixels for every wanted one."""
        seen, given = maps.image_size[axis], maps.output_size[axis]
        low, high, *weights = (tap[wanted] for tap in linear_taps(seen, given, given))
        needed, places = np.unique(np.concatenate([low, high]), return_inverse=True)
        inner = linear_taps(maps.logits.shape[1 + axis], maps.padded_size[axis], seen)
        return [tap[needed] for tap in inner], [*places.reshape(2, -1), *weights]

    down, outer_down = taps(0, np.asarray(rows, np.int64))
    across, outer_across = taps(1, np.asarray(columns, np.int64))
    return _crossings(between(_crossings(maps.logits, down, across)), outer_down, outer_across)


def _crossings(maps: Array, down: Sequence[Array], across: Sequence[Array]) -> Array:
    """Maps (M, h, w) at the crossings of linear taps: columns first, as in upsample."""
    first = int(down[0].min(initial=maps.shape[1]))
    maps = maps[:, first : int(down[1].max(initial=0)) + 1]
    low, high, low_weight, high_weight = across
    wide = maps[:, :, low] * low_weight + maps[:, :, high] * high_weight
    low, high, low_weight, high_weight = down[0] - first, down[1] - first, *down[2:]
    return wide[:, low] * low_weight[:, None] + wide[:, high] * high_weight[:, None]


def class_scores(masks: Masks, class_probabilities: Array) -> Array:
    """Every class's score at every pixel: the sum over masks of class probability (M, C) times mask probability.

    Returns (C, H, W) float32, zero where there is no mask. Raises ValueError.
    """
    probabilities = checks.probabilities(class_probabilities, len(checks.masks(masks)))
    return np.einsum("mc,mhw->chw", probabilities, resample_masks(masks), optimize=True).astype(np.float32)


def compose(masks: Masks, class_probabilities: Array) -> tuple[Array, Array]:
    """The class with the highest score at every pixel, the first one on ties, and that score.

    Returns labels (H, W) int32 and scores (H, W) float32; both zero where there is no mask. Raises ValueError.
    """
    scores = class_scores(masks, class_probabilities)
    return scores.argmax(axis=0).astype(np.int32), scores.max(axis=0)


def triangle_weights(in_size: int, out_size: int) -> Array:
    """Pillow's BILINEAR weights, (out_size, in_size) int64 in fixed point (Pillow, src/libImaging/Resample.c).

    A triangle two source pixels wide, or two output pixels when shrinking, over the pixels whose centres it covers.
    """
    weights = np.zeros((out_size, in_size), np.int64)
    scale = in_size / out_size
    radius = max(scale, 1.0)
    for o in range(out_size):
        centre = (o + 0.5) * scale
        first, last = max(int(centre - radius + 0.5), 0), min(int(centre + radius + 0.5), in_size)
        triangle = np.maximum(1.0 - np.abs((np.arange(first, last) - centre + 0.5) * (1.0 / radius)), 0.0)
        total = sum(triangle.tolist())  # sequentially, as in Pillow
        weights[o, first:last] = (0.5 + triangle / (total or 1.0) * (1 << TRIANGLE_BITS)).astype(np.int64)
    return weights


def _round_fixed(values: Array) -> Array:
    return np.clip((values + (1 << (TRIANGLE_BITS - 1))) >> TRIANGLE_BITS, 0, 255).astype(np.uint8)


def source_positions(in_size: int, out_size: int, count: int) -> Array:
    """Positions of the centres of output pixels among the source pixels, float32.

    The scale is float32, the rest is rounded once, as by the fused multiply-add in torch's compiled bicubic code.
    """
    scale = np.float64(np.float32(in_size) / np.float32(out_size))
    return (scale * (np.arange(count) + 0.5) - 0.5).astype(np.float32)


def linear_taps(in_size: int, out_size: int, count: int) -> tuple[Array, Array, Array, Array]:
    """Source indices low, high and their float32 weights for the first `count` of `out_size` pixels.

    As torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
    """
    x = np.maximum(source_positions(in_size, out_size, count), np.float32(0))
    low = np.minimum(x.astype(np.int64), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    high_weight = np.minimum(x - low.astype(np.float32), np.float32(1))
    return low, high, np.float32(1) - high_weight, high_weight


def upsample(map_: Array, full_size: Sequence[int], kept_size: Sequence[int]) -> Array:
    """Resize a map (h, w) float32 bilinearly to `full_size` and return the top left `kept_size` of it."""
    low, high, low_weight, high_weight = linear_taps(map_.shape[1], full_size[1], kept_size[1])
    wide = map_[:, low] * low_weight + map_[:, high] * high_weight
    low, high, low_weight, high_weight = linear_taps(map_.shape[0], full_size[0], kept_size[0])
    return wide[low] * low_weight[:, None] + wide[high] * high_weight[:, None]


def threshold_logit(threshold: float) -> np.float32:
    """The logit above which a probability, rounded to float32, exceeds `threshold`.

    That is where the exact probability lies above the midpoint between the threshold and the next float; comparing
    logits makes the result independent of the rounding of an exponential.
    """
    rounded = np.float32(threshold)
    if rounded < 0:
        return np.float32(-np.inf)
    middle = 0.5 * (float(rounded) + float(np.nextafter(rounded, np.float32(2))))
    if middle >= 1:
        return np.float32(np.inf)
    return np.float32(math.log(middle / (1.0 - middle)))


def patch_limit(threshold: float, matting: bool) -> np.float32:
    """The logit above which a pixel counts for its patch: with matting where its probability is not 0 in float32."""
    return np.float32(-88.72284) if matting else threshold_logit(threshold)  # 1 / (1 + exp(-x)), exp below 2^128


def sigmoid(logits: Array) -> Array:
    """float32; logits beyond +-88 count as +-88, so that nothing overflows."""
    return np.float32(1) / (np.float32(1) + np.exp(-np.clip(logits, np.float32(-88), np.float32(87))))


def cubic_taps(in_size: int, out_size: int) -> tuple[Array, Array]:
    """Four source indices and float32 weights, (out_size, 4) each, for every output pixel.

    As torch.nn.functional.interpolate(mode="bicubic", align_corners=False): Keys' kernel, a = -0.75, border clamped.
    """
    a = np.float32(-0.75)
    one, two, three, four, five, eight = (np.float32(v) for v in (1, 2, 3, 4, 5, 8))
    x = source_positions(in_size, out_size, out_size)
    base = np.minimum(np.floor(x).astype(np.int64), in_size - 1)
    t = np.clip(x - base.astype(np.float32), np.float32(0), one)

    def near(d: Array) -> Array:
        return ((a + two) * d - (a + three)) * d * d + one

    def far(d: Array) -> Array:
        return ((a * d - five * a) * d + eight * a) * d - four * a

    weights = np.stack([far(t + one), near(t), near(one - t), far((one - t) + one)], axis=1)
    return np.clip(base[:, None] + np.arange(-1, 3), 0, in_size - 1), weights


def nearest_indices(in_size: int, out_size: int) -> Array:
    """The source index of every output pixel, as torch.nn.functional.interpolate(mode="nearest")."""
    scale = np.float32(in_size) / np.float32(out_size)
    return np.minimum((np.arange(out_size, dtype=np.float32) * scale).astype(np.int64), in_size - 1)


def bicubic(maps: Array, size: Sequence[int]) -> Array:
    """Resize maps (..., h, w) float32 bicubically to `size`, columns first."""
    index, weight = cubic_taps(maps.shape[-1], size[1])
    wide = _add(maps[..., index[:, k]] * weight[:, k] for k in range(4))
    index, weight = cubic_taps(maps.shape[-2], size[0])
    return _add(wide[..., index[:, k], :] * weight[:, k, None] for k in range(4))


def _add(terms: Iterable[Array]) -> Array:
    return reduce(operator.add, terms)
