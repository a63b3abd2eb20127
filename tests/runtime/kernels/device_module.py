"""The CUDA kernels with the faces of reference.py's functions, so that the same tests can run on them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tests.cuda_emulation.devices import Bench
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.kernels.device.arguments import CropSource
from vocabseg.runtime.masks import Masks


class CudaModule:
    """The functions of kernels/reference.py on a device: arrays go up and come back.

    dtype: of network inputs and crops. logits: the type that mask logits are given in. with_bits: whether crops are cut
    by the packed masks of region_boxes, where they may be.
    """

    def __init__(self, bench: Bench, dtype: type = np.float32, logits: type = np.float32, with_bits: bool = True):
        self.bench, self.dtype, self.logits, self.with_bits = bench, dtype, logits, with_bits

    def resize_normalize(
        self, image: np.ndarray, size: Sequence[int], padded_size: Sequence[int], mean: object, std: object
    ) -> tuple[np.ndarray, np.ndarray]:
        bench = self.bench
        network_input, resized = bench.new((1, 3, *padded_size), self.dtype), bench.new((*size, 3), np.uint8)
        bench.kernels.resize_normalize(bench.up(image), mean, std, network_input, resized, bench.stream)
        return bench.down(network_input), bench.down(resized)

    def boxes_and_bits(self, masks: Masks, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, areas, and the unpacked bits (N, h, w) bool."""
        bench, n, (h, w) = self.bench, len(masks), masks.image_size
        boxes, areas = bench.new((n, 4), np.int32), bench.new((n,), np.int32)
        bits = bench.new((n, h, -(-w // 32)), np.uint32)
        bench.kernels.region_boxes(self._up(masks), threshold, boxes, areas, bits, bench.stream)
        words = bench.down(bits)
        inside = np.unpackbits(words.view(np.uint8).reshape(n, h, words.shape[2] * 4), axis=2, bitorder="little")
        assert not inside[:, :, w:].any()
        return bench.down(boxes), bench.down(areas), inside[:, :, :w].astype(bool)

    def region_boxes(self, masks: Masks, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        return self.boxes_and_bits(masks, threshold)[:2]

    def mask_confidences(self, logits: np.ndarray, threshold: float) -> np.ndarray:
        masks = Masks(logits, logits.shape[1:], logits.shape[1:], logits.shape[1:])
        confidences = self.bench.new((len(logits),), np.float32)
        self.bench.kernels.mask_confidences(self._up(masks), threshold, confidences, self.bench.stream)
        return self.bench.down(confidences)

    def choose_leaders(
        self, boxes: np.ndarray, areas: np.ndarray, objectness: np.ndarray, bits: np.ndarray, share_iou: float | None,
        min_objectness: float, max_regions: int | None, inverted: bool = False,
    ) -> np.ndarray:  # fmt: skip
        bench, n = self.bench, len(areas)
        found, near = bench.up(areas), None
        if share_iou is not None:
            near = bench.new((n, n), np.uint8)
            bench.kernels.near_masks(bench.up(bits), bench.up(boxes), found, share_iou, near, bench.stream)
        ratings = bench.up(np.float32(1) - objectness if inverted else objectness)
        ranked, leaders, leads = (bench.new((n,), np.int32) for _ in range(3))
        limits = min_objectness, max_regions
        bench.kernels.choose_leaders(ratings, inverted, near, *limits, found, ranked, leaders, leads, bench.stream)
        result = bench.down(leaders)
        np.testing.assert_array_equal(bench.down(leads), result == np.arange(n))
        np.testing.assert_array_equal(bench.down(found), np.where((areas > 0) & (result < 0), -1, areas))
        return result

    def share_rows(self, features: np.ndarray, leaders: np.ndarray) -> np.ndarray:
        bench, order = self.bench, np.flatnonzero(leaders >= 0).astype(np.int32)
        listed, crops = np.full(len(leaders), -7, np.int32), np.full(len(leaders), -7, np.int32)
        listed[: len(order)], crops[: len(features)] = order, np.unique(leaders[order])
        rows = bench.new((len(order), features.shape[1]), features.dtype)
        count = np.array([len(features)], np.int32)
        given = (bench.up(each) for each in (features, leaders, listed, crops, count))
        bench.kernels.share_rows(*given, rows, bench.stream)
        return bench.down(rows)

    def crop_regions(
        self, image: np.ndarray, masks: Masks, boxes: np.ndarray, indices: np.ndarray, cropping: Cropping
    ) -> np.ndarray:
        source = self._source(image, masks, boxes, indices, cropping)
        crops = self.bench.new((len(boxes), 3, cropping.size, cropping.size), self.dtype)
        self.bench.kernels.crop_regions([source], cropping, crops, self.bench.stream)
        return self.bench.down(crops)

    def patch_masks(
        self, masks: Masks, boxes: np.ndarray, indices: np.ndarray, cropping: Cropping, grid: int
    ) -> np.ndarray:
        source = self._source(np.zeros((*masks.image_size, 3), np.uint8), masks, boxes, indices, cropping)
        patches = self.bench.new((len(boxes), grid, grid), self.dtype)
        self.bench.kernels.patch_masks([source], cropping, patches, self.bench.stream)
        return self.bench.down(patches)

    def _source(
        self, image: np.ndarray, masks: Masks, boxes: np.ndarray, indices: np.ndarray, cropping: Cropping
    ) -> CropSource:
        bench, n, (h, w) = self.bench, len(masks), masks.image_size
        masks, bits = self._up(masks), None
        if self.with_bits:
            bits = bench.new((n, h, -(-w // 32)), np.uint32)
            found = bench.new((n, 4), np.int32), bench.new((n,), np.int32)
            bench.kernels.region_boxes(masks, cropping.threshold, *found, bits, bench.stream)
        # Room for a region more than there are: it must be left alone.
        room = np.concatenate([boxes, boxes[:1]]), np.concatenate([indices, indices[:1]])
        count = bench.up(np.array([len(boxes)], np.int32))
        return CropSource(bench.up(image), masks, bits, *map(bench.up, room), count, 0)

    def compose(self, masks: Masks, class_probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bench, size = self.bench, masks.output_size
        labels, scores = bench.new(size, np.int32), bench.new(size, np.float32)
        probabilities = bench.up(class_probabilities)
        bench.kernels.compose(self._up(masks), probabilities, None, None, labels, scores, bench.stream)
        return bench.down(labels), bench.down(scores)

    def _up(self, masks: Masks) -> Masks:
        return replace(masks, logits=self.bench.up(masks.logits.astype(self.logits)))
