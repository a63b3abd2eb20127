"""Regions on a GPU -> their crops and embeddings, in batches that may span several images."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vocabseg.runtime.bundle.sections import RegionSpec
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.errors import DeviceMemoryError, EngineError
from vocabseg.runtime.kernels.device.arguments import CropSource
from vocabseg.runtime.segmenter.buffers import Buffers
from vocabseg.runtime.segmenter.cuda_proposals import DeviceProposals, Part
from vocabseg.runtime.segmenter.host_stages import cropping, encoder_input_shapes

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.cuda_stages import CudaStages

# Rows of the encoder's input buffers, and its largest batch: 128 crops of 224 x 224 in half precision are 39 MB, and
# more rows do not speed up the matrix products.
LARGEST_BATCH = 128
# Batches are rounded up to a multiple of this, so that few shapes occur and each can be replayed as a CUDA graph.
BATCH_STEP = 8
# Inputs start at a multiple of this many bytes, as all memory that CUDA allocates (CUDA C++ Programming Guide, "Device
# Memory Accesses"): kernels that an engine has chosen may rely on it.
ALIGNMENT = 256


class CropEncoder:
    """Cuts and encodes regions on one stream, in one buffer for each of the encoder's inputs.

    `make_room` frees memory when it runs out.
    """

    def __init__(self, stages: "CudaStages", region: RegionSpec, stream: Stream, make_room: Callable[[], None]):
        self._stages, self._stream, self._make_room = stages, stream, make_room
        self._device, self._region, self._cropping = stages.device, region, cropping(region)
        self._buffers = Buffers(self._device, stream.synchronize)
        self._largest_batch: int | None = None
        self._input_buffers: dict[str, DeviceArray] | None = None
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
        """Rows of the input buffers, the most regions cut at a time."""
        return self._inputs()["crops"].shape[0]

    def encode(self, proposals: DeviceProposals) -> None:
        """Encode all crops of one image; their number arrives while they are being cut."""
        n, table = len(proposals.masks), proposals.table
        self._wait_for(proposals)
        if n <= self.rows:
            inputs = self._cut_all(proposals)
            self.prepare_embeddings(proposals)
            self._run(inputs, [(proposals, 0, table.crops(), 0)])
        else:
            for first in range(0, table.crops(), self.rows):
                self.encode_parts([(proposals, first, min(self.rows, table.crops() - first), 0)])
            self.prepare_embeddings(proposals)

    def encode_parts(self, parts: Sequence[Part]) -> None:
        """Encode regions of several images in one batch: (image, first region, how many, first row)."""
        for proposals, *_ in parts:
            self._wait_for(proposals)
            self.prepare_embeddings(proposals)
        sources = [self._source(found, first, count, row, self._number(count)) for found, first, count, row in parts]
        self._run(self._cut(sources), parts)

    def prepare_embeddings(self, proposals: DeviceProposals) -> None:
        """Allocate the embeddings of the image's crops, if not done yet."""
        if proposals.embeddings is None:
            encoder, count = self._stages.encoder, proposals.table.crops()
            shape = encoder.output_shapes(encoder_input_shapes(self._region, count))["image_features"]
            # The same size for every image, so that the next one can reuse the block from the pool.
            full = (max(len(proposals.masks), 1), *shape[1:])
            proposals.embeddings = self._device.empty(full, encoder.graph.output_dtypes["image_features"])[:count]

    def share(self, proposals: DeviceProposals) -> None:
        """The crops' embeddings become the regions', with equal rows for those that share a crop."""
        table, features, listed = proposals.table, proposals.embeddings, proposals.listed
        assert features is not None
        full = (max(table.masks, 1), *features.shape[1:])
        rows = self._device.empty(full, features.dtype)[: table.regions()]

        def spread() -> None:
            crops = table.cut_of(listed)
            order = table.of(listed)[2]
            self._stages.kernels.share_rows(features, table.leaders_of(listed), order, *crops, rows, self._stream)

        self._stages.recordings.run("share_rows", self._stream, (features, listed, rows), (), spread)
        self._stages.in_flight.hold(self._stream.record(), features)
        proposals.embeddings = rows

    def _wait_for(self, proposals: DeviceProposals) -> None:
        assert proposals.selected is not None
        self._stream.wait(proposals.selected)

    def _source(
        self, proposals: DeviceProposals, first: int, count: int, row: int, known: DeviceArray | None = None
    ) -> CropSource:
        """`count` regions from the `first` on, or all that there are of them if the number is not known yet."""
        part = slice(first, first + count)
        assert proposals.crop_boxes is not None
        order, listed = proposals.table.cut_of(proposals.listed)
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

    def _cut(self, sources: Sequence[CropSource]) -> dict[str, DeviceArray]:
        inputs = self._inputs()
        with self._stages.stage("crop_regions", self._stream):
            self._cut_into(inputs, sources)
        return inputs

    def _cut_all(self, proposals: DeviceProposals) -> dict[str, DeviceArray]:
        """Cut all regions of an image, before their number is known."""
        masks, inputs = proposals.masks, self._inputs()
        used = (proposals.resized, masks.logits, proposals.bits, proposals.crop_boxes, proposals.listed)
        sizes = (masks.padded_size, masks.image_size)

        def cut() -> None:
            self._cut_into(inputs, [self._source(proposals, 0, len(masks), 0)])

        with self._stages.stage("crop_regions", self._stream):
            self._stages.recordings.run("crop_regions", self._stream, (*used, *inputs.values()), sizes, cut)
        return inputs

    def _cut_into(self, inputs: Mapping[str, DeviceArray], sources: Sequence[CropSource]) -> None:
        kernels = self._stages.kernels
        kernels.crop_regions(sources, self._cropping, inputs["crops"], self._stream)
        if "patch_mask" in inputs:
            kernels.patch_masks(sources, self._cropping, inputs["patch_mask"], self._stream)

    def _inputs(self) -> dict[str, DeviceArray]:
        """A buffer for each of the encoder's inputs; unwritten rows are zero, so that the encoder never sees NaN."""
        while self._input_buffers is None:
            dtypes = self._stages.encoder.graph.input_dtypes
            try:
                shapes = encoder_input_shapes(self._region, self.largest_batch)
                buffers = {name: self._device.empty(shape, dtypes[name]) for name, shape in shapes.items()}
                for buffer in buffers.values():
                    self._stream.fill(buffer, 0)
                self._input_buffers = buffers
            except DeviceMemoryError as error:
                self._take_half(error, self.largest_batch)
        return self._input_buffers

    def _run(self, inputs: Mapping[str, DeviceArray], parts: Sequence[Part]) -> None:
        """Encode the buffers' rows in batches of few sizes, and copy each image's embeddings to it."""
        rows = max(row + count for _, _, count, row in parts)
        position = 0
        while position < rows:
            batch = -(-(rows - position) // BATCH_STEP) * BATCH_STEP
            batch = min(batch, self.largest_batch, self.rows - position)
            try:
                features = self._encode_batch(
                    {name: buffer[position : position + batch] for name, buffer in inputs.items()}
                )
            except DeviceMemoryError as error:
                self._take_half(error, batch)
                continue
            for proposals, first, count, row in parts:
                low, high = max(row, position), min(row + count, position + batch)
                if low < high:
                    assert proposals.embeddings is not None
                    target = proposals.embeddings[first + low - row : first + high - row]
                    self._stream.copy(target, features[low - position : high - position])
            cut = slice(position, min(position + batch, rows))
            self._stages.note("crop_regions", **{name: buffer[cut] for name, buffer in inputs.items()})
            position += batch
        for proposals, _, count, _ in parts:
            proposals.encoded += count

    def _encode_batch(self, inputs: Mapping[str, DeviceArray]) -> DeviceArray:
        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
            return self._buffers.array(name, (self.rows, *shape[1:]), dtype)[: shape[0]]

        with self._stages.stage("image_encoder", self._stream):
            given = {name: self._aligned(name, part) for name, part in inputs.items()}
            return self._stages.encoder.start(given, allocate)["image_features"]

    def _aligned(self, name: str, part: DeviceArray) -> DeviceArray:
        """The rows of a buffer, or a copy of those that start between multiples of ALIGNMENT."""
        if part.pointer % ALIGNMENT == 0:
            return part
        copy = self._buffers.array(name, part.shape, part.dtype)
        self._stream.copy(copy, part)
        return copy

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
