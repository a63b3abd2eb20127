"""The pipeline's stages on a GPU, from an image to its labels. Nothing here waits for the device, except for the number
of regions, which is read back while the crops are being cut.

Four streams: upload | front: resize, proposals, boxes | back: crops, image encoder, classes, labels | download. Buffers
of a single stream need no synchronisation; whatever passes from one stream to another waits for an event.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import QUERIES
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.recordings import Recordings
from vocabseg.runtime.engines.device_engines import DeviceEngine, DeviceEngines
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import DeviceMemoryError, EngineError, ImageError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels.device.face import CudaKernels
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.progress import Progress, silent
from vocabseg.runtime.segmenter.buffers import Buffers, InFlight, Store, StoredArrays
from vocabseg.runtime.segmenter.cuda_answers import Answers, DeviceArrays, PendingResult, Voting
from vocabseg.runtime.segmenter.cuda_budget import RegionBudget
from vocabseg.runtime.segmenter.cuda_crops import CropEncoder
from vocabseg.runtime.segmenter.cuda_proposals import FLAGGED, DeviceImage, DeviceProposals, RegionTable, Slot, Slots
from vocabseg.runtime.segmenter.regions import Regions
from vocabseg.runtime.segmenter.stages import Observed, input_sizes
from vocabseg.runtime.text.vocabulary import Vocabulary

Method = TypeVar("Method", bound=Callable[..., Any])


def _step(method: Method) -> Method:
    """A stage. If memory runs out, it makes room and tries once more; if it fails, its slot is freed."""

    @wraps(method)
    def attempt(self: "CudaStages", item: Any, *rest: Any, **named: Any) -> Any:
        try:
            return self.within_memory(method, self, item, *rest, **named)
        except BaseException:
            if isinstance(item, DeviceImage | DeviceProposals):
                self.abandon(item.slot)
            raise

    return attempt  # type: ignore[return-value]


class CudaStages(Observed):
    """`Stages` on one GPU: the kernels, a bundle's engines, and their streams and buffers.

    Images may already be on the device: anything with __cuda_array_interface__ or __dlpack__ of (H, W, 3) uint8 RGB,
    C-contiguous. They must not be modified until the result is available.
    """

    def __init__(self, device: Device, bundle: Bundle, choice: Choice, objects: Callable[[], np.ndarray]):
        """`objects` gives `TextEmbedder.object_matrix`."""
        self.device, self.bundle = device, bundle
        self.lock = threading.RLock()
        with device.activate():
            self.kernels = CudaKernels(device)
            self.upload, self.front, self.back, self.download = (device.stream() for _ in range(4))
        self._engines = DeviceEngines(device, bundle, choice, self.lock)
        self.in_flight, self.store = InFlight(), Store()
        self.recordings = Recordings(lambda: self.kernels.state)
        self._front_buffers = Buffers(device, self.front.synchronize)
        self.slots = Slots(device)
        self.crops = CropEncoder(self, bundle.manifest.region, self.back, self.make_room)
        self.voting = Voting(self)
        self.budget = RegionBudget(self, objects) if bundle.manifest.region.budgeted else None

    def engine(self, graph: str) -> Any:
        """The engine of one of the bundle's graphs; its `run` takes host arrays."""
        return self._engines(graph, self.front if graph == "proposal" else self.back)

    @property
    def proposal(self) -> DeviceEngine:
        return self.engine("proposal")  # type: ignore[no-any-return]

    @property
    def encoder(self) -> DeviceEngine:
        return self.engine("image_encoder")  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with self.lock, self.device.activate():
            yield

    def within_memory(self, work: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Run `work`; if memory runs out, make room and try once more."""
        try:
            return work(*given, **named)
        except DeviceMemoryError:
            self.make_room()
            return work(*given, **named)

    def make_room(self) -> None:
        """Free all memory that can be freed without losing anything."""
        self.in_flight.land()
        self.store.spill_all()
        self.device.free_held()

    # Front: from the image to the list of its regions

    def load(self, image: Any) -> np.ndarray | DeviceArray:
        if not DeviceArray.offered_by(image):
            return load_image(image)
        with self.turn():
            array = DeviceArray.of(image, self.device, self.front)
        if len(array.shape) != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
            shape = " x ".join(map(str, array.shape))
            raise ImageError(f"the GPU array has shape {shape} and dtype {array.dtype}: give (H, W, 3) uint8 RGB")
        return array

    @_step
    def prepare(self, image: np.ndarray | DeviceArray) -> DeviceImage:
        spec = self.bundle.manifest.input
        size, padded = input_sizes(spec, image.shape[0], image.shape[1])
        slot = self.slots.take(self.upload, self.front)
        try:
            on_device = self._uploaded(image, slot)
            dtype = self.proposal.graph.input_dtypes["image"]
            network_input = self._front_buffers.array("image", (1, 3, *padded), dtype)
            resized = slot.buffers.array("resized", (*size, 3), np.uint8)
            with self.stage("resize_normalize", self.front):
                given = (on_device, spec.mean, spec.std, network_input, resized, self.front)
                used = (on_device, network_input, resized)
                self.recordings.run(
                    "resize_normalize", self.front, used, (), lambda: self.kernels.resize_normalize(*given)
                )
            self.note("resize_normalize", network_input=network_input, resized=resized)
        except BaseException:
            self.abandon(slot)
            raise
        return DeviceImage(image, slot, resized, network_input)

    @_step
    def propose(self, prepared: DeviceImage) -> DeviceProposals:
        with self.stage("proposal", self.front):
            outputs = self.proposal.start({"image": prepared.network_input}, self._front_buffers.array)
        self.note("proposal", **outputs)
        found = {name: outputs[name] for name in ("mask_logits", QUERIES) if name in outputs}
        # The image's own: the next image overwrites the network's outputs.
        n = found["mask_logits"].shape[1]
        table = RegionTable(n, self.budget is not None)
        *own, flags, listed = self.device.together(
            *((array.shape[1:], array.dtype) for array in found.values()), *_flags_and(table)
        )
        kept = dict(zip(found, own, strict=True))
        (height, width), sizes = prepared.network_input.shape[2:], (prepared.resized.shape, prepared.image.shape)
        masks = Masks(kept["mask_logits"], (height, width), *((shape[0], shape[1]) for shape in sizes))
        proposals = DeviceProposals(
            prepared.image, prepared.slot, prepared.resized, masks, kept.get(QUERIES), flags, listed, table
        )

        def keep() -> None:
            for name, array in found.items():
                self.front.copy(kept[name], array)
            self.front.fill(flags, 0)
            for name in found:
                proposals.flag(name, self.kernels, self.front)

        self.recordings.run("propose", self.front, (*found.values(), *own, flags), (), keep)
        return proposals

    def given(
        self, image: np.ndarray, resized: np.ndarray, masks: Masks, query_embeddings: np.ndarray | None
    ) -> DeviceProposals:
        return self.within_memory(self._given, image, resized, masks, query_embeddings)  # type: ignore[no-any-return]

    def _given(
        self, image: np.ndarray, resized: np.ndarray, masks: Masks, query_embeddings: np.ndarray | None
    ) -> DeviceProposals:
        slot = self.slots.take(self.upload, self.front)
        try:
            on_device = slot.buffers.array("resized", resized.shape, np.uint8)
            self.front.upload(on_device, np.ascontiguousarray(resized))
            logits = self._own(masks.logits)
            queries = None if query_embeddings is None else self._own(query_embeddings)
            self.front.synchronize()  # the host arrays may change from now on
        except BaseException:
            self.abandon(slot)
            raise
        own = Masks(logits, masks.padded_size, masks.image_size, masks.output_size)
        table = RegionTable(len(masks), self.budget is not None)
        flags, listed = self.device.together(*_flags_and(table))
        self.front.fill(flags, 0)
        return DeviceProposals(image, slot, on_device, own, queries, flags, listed, table)

    def _own(self, source: np.ndarray) -> DeviceArray:
        """The image's own copy of a host array."""
        array = self.device.empty(source.shape, source.dtype)
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

    @_step
    def describe(self, proposals: DeviceProposals) -> None:
        region, front, masks = self.bundle.manifest.region, self.front, proposals.masks
        n, (height, width) = len(masks), masks.image_size
        table, listed = proposals.table, proposals.listed
        buffers = proposals.slot.buffers
        packed = not region.matting or region.share_iou is not None
        bits = buffers.array("bits", (n, height, -(-width // 32)), np.uint32) if packed else None
        crop_boxes = buffers.array("crop_boxes", (n, 4), np.int32)
        budget = None if self.budget is None else self.budget.prepare(proposals, bits, crop_boxes)

        def find() -> None:
            boxes, areas, order, count = table.of(listed)
            self.kernels.region_boxes(masks, region.mask_threshold, boxes, areas, bits, front)
            if budget is not None:
                budget.choose()
            self.kernels.select_regions(
                boxes, areas, region.expand_ratio, masks.image_size, order, crop_boxes, count, front
            )
            if budget is not None:
                budget.select()

        with self.stage("region_boxes", front):
            sizes = (masks.padded_size, masks.image_size)
            used = (masks.logits, listed, bits, crop_boxes, *(() if budget is None else budget.used))
            self.recordings.run("region_boxes", front, used, sizes, find)
        proposals.bits, proposals.crop_boxes = bits, crop_boxes
        proposals.selected = front.record()
        pinned = self.device.pinned((table.size,), np.int32)
        front.download(pinned, listed)
        arrived = front.record()
        table.download(pinned, arrived)
        self.in_flight.hold(arrived, pinned, proposals.image, *proposals.arrays().values())

    def abandon(self, slot: Slot) -> None:
        """Free the slot of an image that failed."""
        with contextlib.suppress(EngineError):  # the original error is already being raised
            for stream in (self.upload, self.front, self.back):
                stream.synchronize()
        self.slots.give_back(slot, None)

    # Back: from the list of regions to their embeddings

    @_step
    def encode(self, proposals: DeviceProposals, progress: Progress = silent) -> None:
        """Cut and encode all regions of one image; the number of regions arrives while they are being cut."""
        self.crops.encode(proposals)

    def release(self, proposals: DeviceProposals) -> None:
        """Free the image's slot: no more crops will be cut from it."""
        if proposals.selected is not None:
            self.back.wait(proposals.selected)
        done = self.back.record()
        self.slots.give_back(proposals.slot, done)
        self.in_flight.hold(done, *proposals.arrays().values())

    def finish(self, proposals: DeviceProposals) -> DeviceArrays:
        if proposals.embeddings is not None:
            proposals.flag("embeddings", self.kernels, self.back)
            if self.budget is not None:
                self.crops.share(proposals)
        self.release(proposals)
        stored = StoredArrays(self.download, self.lock, self.back.record(), proposals.arrays())
        self.store.add(stored)
        return DeviceArrays(proposals.image, proposals.table, stored, self.lock)

    # Answers

    @_step
    def classify(self, regions: Regions, vocabulary: Vocabulary) -> Answers:
        return self.voting.classify(regions, vocabulary)

    @_step
    def compose(self, regions: Regions, answers: Answers, vocabulary: Vocabulary) -> PendingResult:
        return self.voting.compose(regions, answers, vocabulary)


def _flags_and(table: RegionTable) -> list[tuple[tuple[int, ...], Any]]:
    """Shapes and dtypes of the flags and the table of an image."""
    return [((len(FLAGGED),), np.int32), ((table.size,), np.int32)]
