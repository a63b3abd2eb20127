"""Regions on a GPU -> their crops and embeddings, in batches that may span several images."""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vocabseg.runtime.bundle.sections import RegionSpec
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.errors import DeviceMemoryError, EngineError
from vocabseg.runtime.kernels.device.arguments import CropSource
from vocabseg.runtime.segmenter.buffers import Buffers
from vocabseg.runtime.segmenter.cuda_proposals import DeviceProposals, Part
from vocabseg.runtime.segmenter.host_stages import cropping

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.cuda_stages import CudaStages

# Rows of the crop buffer, and the largest batch of the image encoder: 128 crops of 224 x 224 in half precision are
# 39 MB, and more rows do not speed up the matrix products.
LARGEST_BATCH = 128
# Batches are rounded up to a multiple of this, so that few shapes occur and each can be replayed as a CUDA graph.
BATCH_STEP = 8


class CropEncoder:
    """Cuts and encodes regions on one stream, in one buffer of crops; `make_room` frees memory when it runs out."""

    def __init__(self, stages: "CudaStages", region: RegionSpec, stream: Stream, make_room: Callable[[], None]):
        self._stages, self._stream, self._make_room = stages, stream, make_room
        self._device, self._side, self._cropping = stages.device, region.crop_size, cropping(region)
        self._buffers = Buffers(self._device, stream.synchronize)
        self._largest_batch: int | None = None
        self._crop_buffer: DeviceArray | None = None
        self._numbers: DeviceArray | None = None
        self._warned = False

    @property
    def largest_batch(self) -> int:
        """The largest batch of crops: what the engine takes, halved each time memory runs out."""
        if self._largest_batch is None:
            self._largest_batch = min(LARGEST_BATCH, self._stages.encoder.largest_batch or LARGEST_BATCH)
        return self._largest_batch

    @property
    def rows(self) -> int:
        """Rows of the crop buffer, the most regions cut at a time."""
        return self._crops().shape[0]

    def encode(self, proposals: DeviceProposals) -> None:
        """Encode all regions of one image; their number arrives while they are being cut."""
        n, table = len(proposals.masks), proposals.table
        self._wait_for(proposals)
        if n <= self.rows:
            crops = self._cut_all(proposals)
            self.prepare_embeddings(proposals)
            self._run(crops, [(proposals, 0, table.regions(), 0)])
        else:
            for first in range(0, table.regions(), self.rows):
                self.encode_parts([(proposals, first, min(self.rows, table.regions() - first), 0)])
            self.prepare_embeddings(proposals)

    def encode_parts(self, parts: Sequence[Part]) -> None:
        """Encode regions of several images in one batch: (image, first region, how many, first row)."""
        for proposals, *_ in parts:
            self._wait_for(proposals)
            self.prepare_embeddings(proposals)
        sources = [self._source(found, first, count, row, self._number(count)) for found, first, count, row in parts]
        self._run(self._cut(sources), parts)

    def prepare_embeddings(self, proposals: DeviceProposals) -> None:
        """Allocate the embeddings of the image's regions, if not done yet."""
        if proposals.embeddings is None:
            encoder, count = self._stages.encoder, proposals.table.regions()
            shape = encoder.output_shapes({"crops": self._shape(count)})["image_features"]
            # The same size for every image, so that the next one can reuse the block from the pool.
            full = (max(len(proposals.masks), 1), *shape[1:])
            proposals.embeddings = self._device.empty(full, encoder.graph.output_dtypes["image_features"])[:count]

    def _wait_for(self, proposals: DeviceProposals) -> None:
        assert proposals.selected is not None
        self._stream.wait(proposals.selected)

    def _shape(self, count: int) -> tuple[int, int, int, int]:
        return count, 3, self._side, self._side

    def _source(
        self, proposals: DeviceProposals, first: int, count: int, row: int, known: DeviceArray | None = None
    ) -> CropSource:
        """`count` regions from the `first` on, or all that there are of them if the number is not known yet."""
        part = slice(first, first + count)
        assert proposals.crop_boxes is not None
        _, _, order, listed = proposals.table.of(proposals.listed)
        return CropSource(
            resized=proposals.resized,
            masks=proposals.masks,
            bits=proposals.bits,
            crop_boxes=proposals.crop_boxes[part],
            order=order[part],
            count=listed if known is None else known,
            first=row,
        )

    def _number(self, value: int) -> DeviceArray:
        """A number known to the host, on the device for kernels to read."""
        if self._numbers is None:
            numbers = np.arange(LARGEST_BATCH + 1, dtype=np.int32)
            self._numbers = self._device.empty(numbers.shape, np.int32)
            self._stream.upload(self._numbers, numbers)
            self._stream.synchronize()
        return self._numbers[value : value + 1]

    def _cut(self, sources: Sequence[CropSource]) -> DeviceArray:
        crops = self._crops()
        with self._stages.stage("crop_regions", self._stream):
            self._stages.kernels.crop_regions(sources, self._cropping, crops, self._stream)
        return crops

    def _cut_all(self, proposals: DeviceProposals) -> DeviceArray:
        """Cut all regions of an image, before their number is known."""
        masks, crops = proposals.masks, self._crops()
        used = (proposals.resized, masks.logits, proposals.bits, proposals.crop_boxes, proposals.listed, crops)
        sizes = (masks.padded_size, masks.image_size)

        def cut() -> None:
            source = self._source(proposals, 0, len(masks), 0)
            self._stages.kernels.crop_regions([source], self._cropping, crops, self._stream)

        with self._stages.stage("crop_regions", self._stream):
            self._stages.recordings.run("crop_regions", self._stream, used, sizes, cut)
        return crops

    def _crops(self) -> DeviceArray:
        """The crop buffer; unwritten rows are zero, so that the encoder never sees NaN."""
        while self._crop_buffer is None:
            dtype = self._stages.encoder.graph.input_dtypes["crops"]
            try:
                self._crop_buffer = self._device.empty(self._shape(self.largest_batch), dtype)
                self._stream.fill(self._crop_buffer, 0)
            except DeviceMemoryError as error:
                self._take_half(error, self.largest_batch)
        return self._crop_buffer

    def _run(self, crops: DeviceArray, parts: Sequence[Part]) -> None:
        """Encode the buffer's rows in batches of few sizes, and copy each image's embeddings to it."""
        rows = max(row + count for _, _, count, row in parts)
        position = 0
        while position < rows:
            batch = -(-(rows - position) // BATCH_STEP) * BATCH_STEP
            batch = min(batch, self.largest_batch, crops.shape[0] - position)
            try:
                features = self._encode_batch(crops[position : position + batch])
            except DeviceMemoryError as error:
                self._take_half(error, batch)
                continue
            for proposals, first, count, row in parts:
                low, high = max(row, position), min(row + count, position + batch)
                if low < high:
                    assert proposals.embeddings is not None
                    target = proposals.embeddings[first + low - row : first + high - row]
                    self._stream.copy(target, features[low - position : high - position])
            self._stages.note("crop_regions", crops=crops[position : min(position + batch, rows)])
            position += batch
        for proposals, _, count, _ in parts:
            proposals.encoded += count

    def _encode_batch(self, crops: DeviceArray) -> DeviceArray:
        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
            return self._buffers.array(name, (self.rows, *shape[1:]), dtype)[: shape[0]]

        with self._stages.stage("image_encoder", self._stream):
            return self._stages.encoder.start({"crops": crops}, allocate)["image_features"]

    def _take_half(self, error: EngineError, batch: int) -> None:
        """Memory ran out with `batch` crops: free what can be freed, and halve the batch from now on."""
        if batch <= 1:
            raise error
        self._make_room()
        self._largest_batch = batch // 2
        if not self._warned:
            self._warned = True
            text = f"{error}; regions are encoded in batches of at most {batch // 2} from now on"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
