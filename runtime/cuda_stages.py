"""The stages of the pipeline on a GPU, from an image to its regions' embeddings. Nothing here waits for the device,
except for the number of regions, which is read back while the crops are being cut.

Four streams: upload | front: resize, proposals, boxes | back: crops, image encoder, classes, labels | download. Buffers
that only one stream uses need no more than that; what passes from one to another waits for an event.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vocabseg.runtime.bundle import Bundle
from vocabseg.runtime.cuda import Device
from vocabseg.runtime.cuda_arrays import DeviceArray
from vocabseg.runtime.cuda_buffers import Buffers, Flights, Keeper, Kept
from vocabseg.runtime.cuda_found import Found, Part, Size, Slot, Table, Timeline
from vocabseg.runtime.cuda_streams import Stream
from vocabseg.runtime.engines.device import DeviceEngine
from vocabseg.runtime.errors import DeviceMemoryError, EngineError
from vocabseg.runtime.geometry import padded_size, resized_size
from vocabseg.runtime.kernels.cuda import CropSource, CudaKernels

# Rows of the crops' buffer, and the largest batch of the image encoder: 128 crops of 224 x 224 in half precision are
# 39 MB, and more rows make no matrix product faster.
LARGEST_BATCH = 128
# Batches are rounded up to a multiple of it, so that few shapes occur and each can be replayed as a CUDA graph.
BATCH_STEP = 8


class Stages:
    """A bundle's graphs and the kernels on one device, with their streams and buffers.

    `lock` is held by whoever starts work, so that several threads may share one.
    """

    def __init__(self, device: Device, bundle: Bundle, open_engine: Callable[[str, Stream], DeviceEngine]):
        self.device, self.bundle = device, bundle
        self.kernels = CudaKernels(device)
        self.lock = threading.RLock()
        self.upload, self.front, self.back, self.download = (device.stream() for _ in range(4))
        self.proposal = open_engine("proposal", self.front)
        self.encoder = open_engine("image_encoder", self.back)
        self.flights, self.keeper = Flights(), Keeper()
        self.timeline: Timeline | None = None
        self._front_buffers = Buffers(device, self.front.synchronize)
        self._back_buffers = Buffers(device, self.back.synchronize)
        self._slots: list[Slot] = []
        self._largest_batch: int | None = None
        self._crop_buffer: DeviceArray | None = None
        self._numbers: DeviceArray | None = None
        self._told = False

    @contextlib.contextmanager
    def stage(self, name: str, stream: Stream) -> Iterator[None]:
        """What is started inside is one stage, for whoever measures."""
        if self.timeline is None:
            yield
            return
        begin = stream.record()
        yield
        self.timeline.stage(name, begin, stream.record())

    def note(self, name: str, **arrays: Any) -> None:
        """Show arrays that a stage gives to whoever looks."""
        if self.timeline is not None:
            self.timeline.note(name, arrays)

    def within_memory(self, work: Callable[[], Any]) -> Any:
        """Run `work`; where memory runs out, make room and try once more."""
        try:
            return work()
        except DeviceMemoryError:
            self.flights.land()
            self.keeper.spill_all()
            self.device.free_held()
            return work()

    # Front: from the image to the list of its regions

    def find(self, image: np.ndarray | DeviceArray) -> Found:
        """Start finding the proposals of an image (H, W, 3) uint8 RGB."""
        spec = self.bundle.manifest.input
        size = resized_size(image.shape[0], image.shape[1], spec.min_size, spec.max_size)
        padded = padded_size(*size, spec.divisor)
        slot = self._take_slot()
        try:
            on_device = self._uploaded(image, slot)
            network_input = self._front_buffers.array(
                "image", (1, 3, *padded), self.proposal.graph.input_dtypes["image"]
            )
            resized = slot.buffers.array("resized", (*size, 3), np.uint8)
            with self.stage("resize_normalize", self.front):
                self.kernels.resize_normalize(on_device, spec.mean, spec.std, network_input, resized, self.front)
            self.note("resize_normalize", network_input=network_input, resized=resized)
            with self.stage("proposal", self.front):
                outputs = self.proposal.start({"image": network_input}, self._front_buffers.array)
            self.note("proposal", **outputs)
            arrays = {name: self._own(array.reshape(*array.shape[1:])) for name, array in outputs.items()}
            return self._select(slot, image, size, padded, resized, arrays)
        except BaseException:
            self._reset(slot)
            raise

    def given(
        self,
        image: np.ndarray,
        resized: np.ndarray,
        mask_logits: np.ndarray,
        query_embeddings: np.ndarray | None,
        padded: Size,
    ) -> Found:
        """Start with proposals that the host has: as Segmenter.describe."""
        slot = self._take_slot()
        try:
            on_device = slot.buffers.array("resized", resized.shape, np.uint8)
            self.front.upload(on_device, np.ascontiguousarray(resized))
            arrays = {"mask_logits": self._own(mask_logits)}
            if query_embeddings is not None:
                arrays["query_embeddings"] = self._own(query_embeddings)
            self.front.synchronize()  # the host's arrays may change from now on
            return self._select(slot, image, (resized.shape[0], resized.shape[1]), padded, on_device, arrays)
        except BaseException:
            self._reset(slot)
            raise

    def _own(self, source: np.ndarray | DeviceArray) -> DeviceArray:
        """A copy of the image's own, of an array on the host or of a buffer that the next image overwrites."""
        array = self.device.empty(source.shape, source.dtype)
        if isinstance(source, DeviceArray):
            self.front.copy(array, source)
        else:
            self.front.upload(array, np.ascontiguousarray(source))
        return array

    def _uploaded(self, image: np.ndarray | DeviceArray, slot: Slot) -> DeviceArray:
        if isinstance(image, DeviceArray):
            return image
        array = slot.buffers.array("image", image.shape, np.uint8)
        staging = slot.buffers.pinned("image", image.shape, np.uint8)
        if slot.uploaded is not None:
            slot.uploaded.synchronize()
        np.copyto(staging, image)
        self.upload.upload(array, staging)
        slot.uploaded = self.upload.record()
        self.front.wait(slot.uploaded)
        return array

    def _select(
        self, slot: Slot, image: Any, size: Size, padded: Size, resized: DeviceArray, arrays: dict[str, DeviceArray]
    ) -> Found:
        region, front = self.bundle.manifest.region, self.front
        masks = arrays["mask_logits"]
        n = masks.shape[0]
        table = arrays["table"] = self.device.empty((6 * n + 1,), np.int32)
        boxes, areas, order, count = Table.parts(table, n)
        bits = None
        if not region.matting:
            bits = slot.buffers.array("bits", (n, size[0], -(-size[1] // 32)), np.uint32)
        crop_boxes = slot.buffers.array("crop_boxes", (n, 4), np.int32)
        with self.stage("region_boxes", front):
            self.kernels.region_boxes(masks, padded, size, region.mask_threshold, boxes, areas, bits, front)
            self.kernels.select_regions(boxes, areas, region.expand_ratio, size, order, crop_boxes, count, front)
        selected = front.record()
        pinned = self.device.pinned((6 * n + 1,), np.int32)
        front.download(pinned, table)
        counted = front.record()
        self.flights.hold(counted, pinned, image, *arrays.values())
        list_ = Table(n, pinned, counted)
        return Found(image, size, padded, slot, resized, bits, crop_boxes, arrays, selected, list_)

    def _take_slot(self) -> Slot:
        if not self._slots:
            slot = Slot(Buffers(self.device, lambda: None))
            slot.buffers = Buffers(self.device, lambda: None if slot.done is None else slot.done.synchronize())
            return slot
        slot = self._slots.pop(0)
        if slot.done is not None:
            self.upload.wait(slot.done)
            self.front.wait(slot.done)
        return slot

    def _release(self, slot: Slot, stream: Stream) -> None:
        """Somebody else may use the slot after what is on `stream` now."""
        slot.done = stream.record()
        self._slots.append(slot)

    def _reset(self, slot: Slot) -> None:
        """Something went wrong half way."""
        with contextlib.suppress(EngineError):  # what went wrong is told already
            self.upload.synchronize()
            self.front.synchronize()
        slot.done = slot.uploaded = None
        self._slots.append(slot)

    # Back: from the list of regions to their embeddings

    @property
    def encodes(self) -> bool:
        """Whether images with queries need the image encoder at all."""
        return self.bundle.manifest.ensemble.enabled

    @property
    def largest_batch(self) -> int:
        """The largest batch of crops at a time: what the engine takes, and half of it each time memory runs out."""
        if self._largest_batch is None:
            self._largest_batch = min(LARGEST_BATCH, self.encoder.largest_batch or LARGEST_BATCH)
        return self._largest_batch

    def encode(self, found: Found) -> None:
        """Cut and encode all regions of one image; the number of regions arrives while they are being cut."""
        self.back.wait(found.selected)
        n = found.table.masks
        if n <= self.rows:
            crops = self.cut([self._source(found, 0, n, 0, found.arrays["table"][6 * n :])])
            self.prepare_embeddings(found)
            self._run_encoder(crops, [(found, 0, found.count(), 0)])
        else:
            for first in range(0, found.count(), self.rows):
                self.encode_parts([(found, first, min(self.rows, found.count() - first), 0)])
            self.prepare_embeddings(found)

    def encode_parts(self, parts: Sequence[Part]) -> None:
        """Cut and encode rows of several images in one batch: (image, first region, how many, first row)."""
        for found, *_ in parts:
            self.back.wait(found.selected)
            self.prepare_embeddings(found)
        sources = [self._source(found, first, count, row, self.number(count)) for found, first, count, row in parts]
        self._run_encoder(self.cut(sources), parts)

    def finish(self, found: Found) -> None:
        """No crops will be cut out of this image any more: its slot is free for another."""
        self.back.wait(found.selected)
        self._release(found.slot, self.back)
        self.flights.hold(self.back.record(), *found.arrays.values())

    def prepare_embeddings(self, found: Found) -> None:
        """Memory for the embeddings of the image's regions, if there is none yet."""
        if "embeddings" not in found.arrays:
            name, dtype = "image_features", self.encoder.graph.output_dtypes["image_features"]
            shape = self.encoder.output_shapes({"crops": self._crop_shape(found.count())})[name]
            # As large for every image, so that the pool has what the next one needs.
            full = (max(found.table.masks, 1), *shape[1:])
            found.arrays["embeddings"] = self.device.empty(full, dtype)[: found.count()]

    def _crop_shape(self, count: int) -> tuple[int, int, int, int]:
        side = self.bundle.manifest.region.crop_size
        return count, 3, side, side

    def _source(self, found: Found, first: int, count: int, row: int, known: DeviceArray) -> CropSource:
        part = slice(first, first + count)
        return CropSource(
            resized=found.resized,
            mask_logits=found.arrays["mask_logits"],
            bits=found.bits,
            padded_size=found.padded_size,
            crop_boxes=found.crop_boxes[part],
            order=Table.parts(found.arrays["table"], found.table.masks)[2][part],
            count=known,
            first=row,
        )

    def number(self, value: int) -> DeviceArray:
        """A number that the host knows, where kernels read it."""
        if self._numbers is None:
            numbers = np.arange(LARGEST_BATCH + 1, dtype=np.int32)
            self._numbers = self.device.empty(numbers.shape, np.int32)
            self.back.upload(self._numbers, numbers)
            self.back.synchronize()
        return self._numbers[value : value + 1]

    def cut(self, sources: Sequence[CropSource]) -> DeviceArray:
        region = self.bundle.manifest.region
        mean, std = np.array(region.mean) * 255, np.array(region.std) * 255
        fill = mean if region.mask_fill == "mean" else np.zeros(3)
        crops = self._crops()
        with self.stage("crop_regions", self.back):
            self.kernels.crop_regions(sources, fill, mean, std, region.mask_threshold, region.matting, crops, self.back)
        return crops

    @property
    def rows(self) -> int:
        """Rows of the crops' buffer, which bounds what is cut at a time."""
        return self._crops().shape[0]

    def _crops(self) -> DeviceArray:
        """The crops' buffer; rows that nobody wrote to are zero, so that no encoder meets what is not a number."""
        while self._crop_buffer is None:
            shape, dtype = self._crop_shape(self.largest_batch), self.encoder.graph.input_dtypes["crops"]
            try:
                self._crop_buffer = self.device.empty(shape, dtype)
                self.back.fill(self._crop_buffer, 0)
            except DeviceMemoryError as error:
                self._make_room(error, self.largest_batch)
        return self._crop_buffer

    def _run_encoder(self, crops: DeviceArray, parts: Sequence[Part]) -> None:
        """Encode the buffer's rows in batches of few sizes, and give every image its own."""
        rows = max(row + count for _, _, count, row in parts)
        position = 0
        features: DeviceArray | None = None
        while position < rows:
            batch = -(-(rows - position) // BATCH_STEP) * BATCH_STEP
            batch = min(batch, self.largest_batch, crops.shape[0] - position)
            try:
                features = self._encode_batch(crops[position : position + batch])
            except DeviceMemoryError as error:
                self._make_room(error, batch)
                continue
            for found, first, count, row in parts:
                low, high = max(row, position), min(row + count, position + batch)
                if low < high:
                    target = found.arrays["embeddings"][first + low - row : first + high - row]
                    self.back.copy(target, features[low - position : high - position])
            self.note("crop_regions", crops=crops[position : min(position + batch, rows)])
            position += batch
        for found, _, count, _ in parts:
            found.encoded += count

    def _encode_batch(self, crops: DeviceArray) -> DeviceArray:
        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
            return self._back_buffers.array(name, (self.rows, *shape[1:]), dtype)[: shape[0]]

        with self.stage("image_encoder", self.back):
            return self.encoder.start({"crops": crops}, allocate)["image_features"]

    def _make_room(self, error: EngineError, batch: int) -> None:
        """Memory ran out with that many crops: free what can be freed, and take half as many from now on."""
        if batch <= 1:
            raise error
        self.flights.land()
        self.keeper.spill_all()
        self.device.free_held()
        self._largest_batch = batch // 2
        if not self._told:
            self._told = True
            text = f"{error}; regions are encoded in batches of at most {batch // 2} from now on"
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def keep(self, found: Found) -> Kept:
        """What stays of an image for later questions."""
        self.back.wait(found.selected)
        kept = Kept(self.download, self.lock, self.back.record(), dict(found.arrays))
        self.keeper.add(kept)
        return kept
