"""The Segmenter on a GPU: the same surface, with nothing but labels and scores coming back from the device."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from vocabseg.runtime.bundle import Bundle
from vocabseg.runtime.cuda import Device
from vocabseg.runtime.cuda_arrays import DeviceArray
from vocabseg.runtime.cuda_found import Found, Part
from vocabseg.runtime.cuda_regions import CudaRegions, Pending, TextMatrices
from vocabseg.runtime.cuda_stages import Stages
from vocabseg.runtime.cuda_streams import Stream
from vocabseg.runtime.engines import Choice, Engine, choose
from vocabseg.runtime.engines.cuda_choice import VISION, can_open
from vocabseg.runtime.engines.device import DeviceEngine
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.geometry import expand_boxes
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels.cuda import CropSource
from vocabseg.runtime.regions import Regions, Size
from vocabseg.runtime.result import Result
from vocabseg.runtime.segmenter import Progress, Segmenter
from vocabseg.runtime.text_embedder import TextEmbedder
from vocabseg.runtime.vocabulary import Vocabulary

# With many images: threads that decode, images whose proposals are being found ahead of those being encoded, images
# whose regions may wait for a batch to be full, and results on their way to the host.
DECODERS = 4
AHEAD = 2
WAITING = 8
RESULTS = 4


class CudaSegmenter(Segmenter):
    """A bundle made ready to run on one GPU; made by `vocabseg.load`. Threads may share one and take turns.

    Images may be on the device already: anything with __cuda_array_interface__ or __dlpack__ of (H, W, 3) uint8 RGB,
    C-contiguous. It must stay as it is until its result is there.
    """

    def __init__(self, bundle: Bundle, choice: Choice, device: Device, kernels: str | None = None):
        self.bundle = bundle
        self.choice = choice
        self.device = device
        self.kernels = load_kernels(kernels)  # of the host: for questions to results, and masks of one's own
        self._engines = {}
        self._device_engines: dict[str, DeviceEngine] = {}
        with device.activate():
            self.stages = Stages(device, bundle, self._open_engine)
        self.text = TextEmbedder(bundle, self.engine)
        self._texts = TextMatrices(self.stages, self.text)

    def _open_engine(self, graph: str, stream: Stream) -> DeviceEngine:
        if graph not in self._device_engines:
            self._device_engines[graph] = DeviceEngine(self.device, self.bundle, graph, self.choice, stream)
        return self._device_engines[graph]

    def engine(self, graph: str) -> Any:
        """The engine of one of the bundle's graphs; it opens when first run, and its `run` takes arrays of the host.

        A text encoder that the chosen engine does not have runs on the CPU: it sees a name once.
        """
        if graph not in VISION and not can_open(self.device, self.bundle, graph, self.choice):
            if graph not in self._engines:
                self._engines[graph] = Engine(self.bundle.graph_path(graph), choose(device="cpu"))
            return self._engines[graph]
        return _Locked(self._open_engine(graph, self.stages.back), self.stages)

    def propose(self, image: Any, progress: Progress | None = None) -> Regions:
        """Everything that does not depend on class names: proposals, crops and their embeddings.

        `image` is a path, a PIL image, or a (H, W, 3) uint8 RGB array, on the host or this GPU. Raises ImageError when
        it cannot be used. Returns before the device is done; whoever asks for an array waits for it.
        """
        tick = progress or _silent
        tick("reading the image", 0, 1)
        pixels = self._load(image)
        tick("finding regions", 0, 1)
        stages = self.stages
        with stages.lock, self.device.activate():
            found = stages.within_memory(lambda: stages.find(pixels))
            return self._described(found)

    def describe(
        self,
        image: np.ndarray,
        resized: np.ndarray,
        mask_logits: np.ndarray,
        query_embeddings: np.ndarray | None,
        padded: Size,
        progress: Progress | None = None,
    ) -> Regions:
        """Regions from proposals that are already there, on the host; see Segmenter.describe."""
        if not len(mask_logits):  # no kernel runs on nothing
            return super().describe(image, resized, mask_logits, query_embeddings, padded, progress)
        stages = self.stages
        with stages.lock, self.device.activate():
            given = (image, resized, mask_logits, query_embeddings, padded)
            return self._described(stages.within_memory(lambda: stages.given(*given)))

    def _described(self, found: Found) -> CudaRegions:
        stages = self.stages
        try:
            if stages.encodes or "query_embeddings" not in found.arrays:
                stages.within_memory(lambda: stages.encode(found))
        finally:
            stages.finish(found)
        return CudaRegions(found, stages, self._texts, self.text)

    def crops(
        self, resized: np.ndarray, mask_logits: np.ndarray, padded: Size, boxes: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[np.ndarray, slice]]:
        """The encoder's input for V regions, cut on the device: (crops (v, 3, S, S) float32, which of the regions)."""
        stages, region = self.stages, self.bundle.manifest.region
        expanded = expand_boxes(boxes, region.expand_ratio, (resized.shape[0], resized.shape[1]))
        with stages.lock, self.device.activate():
            host = (resized, mask_logits, expanded, indices.astype(np.int32))
            arrays = [self.device.empty(array.shape, array.dtype) for array in host]
            for array, given in zip(arrays, host, strict=True):
                stages.back.upload(array, np.ascontiguousarray(given))
            stages.back.synchronize()
        for start in range(0, len(boxes), stages.rows):
            part = slice(start, min(start + stages.rows, len(boxes)))
            count = part.stop - part.start
            with stages.lock, self.device.activate():
                source = CropSource(
                    resized=arrays[0], mask_logits=arrays[1], bits=None, padded_size=padded,
                    crop_boxes=arrays[2][part], order=arrays[3][part], count=stages.number(count), first=0,
                )  # fmt: skip
                crops = stages.cut([source])[:count].to_host(stages.back)
            yield crops.astype(np.float32, copy=False), part

    def segment_pairs(self, pairs: Iterable[tuple[Any, Vocabulary]]) -> Iterator[Result]:
        """Segment images, each into its own classes; results come in order, each as if its image had been alone.

        Threads read images ahead, some of them are on their way through the device at a time, and regions of several
        images are encoded together. What is wrong with an image is raised when its turn comes.
        """
        line = _Line(self)
        workers = min(DECODERS, os.cpu_count() or 1)

        def load(pair: tuple[Any, Vocabulary]) -> tuple[np.ndarray | DeviceArray, Vocabulary]:
            return self._load(pair[0]), pair[1]

        with ThreadPoolExecutor(workers, "decode") as pool:
            try:
                for loading in _ahead(pool, load, pairs, workers + AHEAD):
                    try:
                        image, vocabulary = loading.result()
                    except Exception:
                        yield from line.rest()
                        raise
                    line.put(image, vocabulary)
                    yield from line.results(RESULTS)
                yield from line.rest()
            finally:
                line.close()

    def _load(self, image: Any) -> np.ndarray | DeviceArray:
        if not DeviceArray.offered_by(image):
            return load_image(image)
        array = DeviceArray.of(image, self.device, self.stages.front)
        if len(array.shape) != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
            shape = " x ".join(map(str, array.shape))
            raise ImageError(f"an array of shape {shape} and dtype {array.dtype} on the GPU: give (H, W, 3) uint8 RGB")
        return array


class _Line:
    """Images between their decoding and their results, for `segment_pairs`."""

    def __init__(self, segmenter: CudaSegmenter):
        self._segmenter, self._stages = segmenter, segmenter.stages
        self._vocabularies: deque[Vocabulary] = deque()  # of the images that are not classified yet
        self._finding: deque[Found] = deque()  # proposals on their way
        self._waiting: deque[Found] = deque()  # regions not all encoded
        self._parts: list[Part] = []  # the batch that is being filled
        self._filled = 0
        self._pending: deque[Pending] = deque()

    def put(self, image: np.ndarray | DeviceArray, vocabulary: Vocabulary) -> None:
        """Start an image, and move on those before it."""
        stages = self._stages
        with stages.lock, stages.device.activate():
            self._vocabularies.append(vocabulary)
            self._finding.append(stages.within_memory(lambda: stages.find(image)))
            while len(self._finding) > AHEAD:
                self._pack(self._finding.popleft())

    def results(self, most: int) -> Iterator[Result]:
        """Results that are there, and further ones while more than `most` are on their way."""
        while self._pending and (len(self._pending) > most or self._pending[0].done.query()):
            yield self._pending.popleft().result()

    def rest(self) -> Iterator[Result]:
        """All that is left, in order."""
        with self._stages.lock, self._stages.device.activate():
            while self._finding:
                self._pack(self._finding.popleft())
            self._encode()
        yield from self.results(-1)

    def close(self) -> None:
        """Leave the images that nobody wants any more."""
        with self._stages.lock, self._stages.device.activate():
            for found in itertools.chain(self._finding, self._waiting):
                self._stages.finish(found)
        self._finding.clear()
        self._waiting.clear()

    def _pack(self, found: Found) -> None:
        """Put an image's regions into the batch; encode whenever it is full, or too many images wait for it."""
        self._waiting.append(found)
        if self._stages.encodes:
            first, count = 0, found.count()
            while first < count:
                taken = min(count - first, self._stages.rows - self._filled)
                self._parts.append((found, first, taken, self._filled))
                self._filled += taken
                first += taken
                if self._filled == self._stages.rows:
                    self._encode()
            if len(self._waiting) > WAITING:
                self._encode()
        self._classify()

    def _encode(self) -> None:
        parts, self._parts, self._filled = self._parts, [], 0
        if parts:
            self._stages.within_memory(lambda: self._stages.encode_parts(parts))
        self._classify()

    def _classify(self) -> None:
        """Classify the images in front whose regions are all encoded."""
        stages, segmenter = self._stages, self._segmenter
        while self._waiting and (not stages.encodes or self._waiting[0].encoded == self._waiting[0].count()):
            found = self._waiting.popleft()
            if stages.encodes:
                stages.prepare_embeddings(found)
            stages.finish(found)
            regions = CudaRegions(found, stages, segmenter._texts, segmenter.text)
            self._pending.append(regions.start_classify(self._vocabularies.popleft()))


class _Locked:
    """An engine that several threads may run."""

    def __init__(self, engine: DeviceEngine, stages: Stages):
        self._engine, self._stages = engine, stages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, inputs: Any) -> Any:
        with self._stages.lock:
            return self._engine.run(inputs)


def _ahead(pool: Executor, function: Any, items: Iterable[Any], count: int) -> Iterator[Future[Any]]:
    """Futures of `function` of every item, in order, up to `count` items ahead of whoever takes them."""
    coming: deque[Future[Any]] = deque()
    for item in items:
        coming.append(pool.submit(function, item))
        if len(coming) > count:
            yield coming.popleft()
    yield from coming


def _silent(what: str, done: int, total: int) -> None:
    pass
