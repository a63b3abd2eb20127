"""The CUDA kernels with the faces of reference.py's functions, so that the same tests can run on them."""

from collections.abc import Sequence

import numpy as np

from tests.cuda_emulation.devices import Bench
from vocabseg.runtime.kernels.cuda import CropSource


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

    def boxes_and_bits(
        self, mask_logits: np.ndarray, padded_size: Sequence[int], image_size: Sequence[int], threshold: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, areas, and the unpacked bits (N, h, w) bool."""
        bench, n, (h, w) = self.bench, len(mask_logits), image_size
        boxes, areas = bench.new((n, 4), np.int32), bench.new((n,), np.int32)
        bits = bench.new((n, h, -(-w // 32)), np.uint32)
        masks = bench.up(mask_logits.astype(self.logits))
        bench.kernels.region_boxes(masks, padded_size, image_size, threshold, boxes, areas, bits, bench.stream)
        words = bench.down(bits)
        inside = np.unpackbits(words.view(np.uint8).reshape(n, h, words.shape[2] * 4), axis=2, bitorder="little")
        assert not inside[:, :, w:].any()
        return bench.down(boxes), bench.down(areas), inside[:, :, :w].astype(bool)

    def region_boxes(
        self, mask_logits: np.ndarray, padded_size: Sequence[int], image_size: Sequence[int], threshold: float
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.boxes_and_bits(mask_logits, padded_size, image_size, threshold)[:2]

    def crop_regions(
        self,
        image: np.ndarray,
        mask_logits: np.ndarray,
        padded_size: Sequence[int],
        boxes: np.ndarray,
        indices: np.ndarray,
        threshold: float,
        matting: bool,
        fill: object,
        mean: object,
        std: object,
        crop_size: int,
    ) -> np.ndarray:
        bench, n = self.bench, len(mask_logits)
        masks, size = bench.up(mask_logits.astype(self.logits)), image.shape[:2]
        bits = None
        if self.with_bits:
            bits = bench.new((n, size[0], -(-size[1] // 32)), np.uint32)
            found = bench.new((n, 4), np.int32), bench.new((n,), np.int32)
            bench.kernels.region_boxes(masks, padded_size, size, threshold, *found, bits, bench.stream)
        crops = bench.new((len(boxes), 3, crop_size, crop_size), self.dtype)
        # Room for a region more than there are: it must be left alone.
        room = np.concatenate([boxes, boxes[:1]]), np.concatenate([indices, indices[:1]])
        source = CropSource(
            bench.up(image), masks, bits, padded_size, *map(bench.up, room),
            bench.up(np.array([len(boxes)], np.int32)), 0,
        )  # fmt: skip
        bench.kernels.crop_regions([source], fill, mean, std, threshold, matting, crops, bench.stream)
        return bench.down(crops)

    def compose(
        self,
        mask_logits: np.ndarray,
        class_probabilities: np.ndarray,
        padded_size: Sequence[int],
        image_size: Sequence[int],
        output_size: Sequence[int],
    ) -> tuple[np.ndarray, np.ndarray]:
        bench = self.bench
        labels, scores = bench.new(tuple(output_size), np.int32), bench.new(tuple(output_size), np.float32)
        masks, probabilities = bench.up(mask_logits.astype(self.logits)), bench.up(class_probabilities)
        bench.kernels.compose(
            masks, probabilities, None, None, padded_size, image_size, labels, scores, bench.stream
        )  # fmt: skip
        return bench.down(labels), bench.down(scores)
