"""Segmenter: the one pipeline from an image to its regions, written once for every device."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from vocabseg.runtime import engines
from vocabseg.runtime.bundle import Bundle, open_bundle
from vocabseg.runtime.crops import cut_crops
from vocabseg.runtime.errors import EngineError, ImageError, VocabularyError
from vocabseg.runtime.geometry import padded_size, resized_size
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.regions import Regions, Size
from vocabseg.runtime.result import Result
from vocabseg.runtime.text_embedder import TextEmbedder
from vocabseg.runtime.threads import limit_threads, thread_count
from vocabseg.runtime.vocabulary import Vocabulary

# Called as progress(what, done, total) while something long goes on.
Progress = Callable[[str, int, int], None]

Names = Vocabulary | Sequence[str] | str
Item = TypeVar("Item")
Found = TypeVar("Found")

# Regions encoded at a time: 16 crops of 224 x 224 keep the encoder's activations near 100 MB (ViT-B/16) and its matrix
# products large enough to run at full speed.
CROPS_PER_CHUNK = 16

# Logit that stands for certainty in masks of one's own: sigmoid(40) rounds to 1 in float32.
CERTAIN = 40.0


class Segmenter:
    """A bundle made ready to run on this machine; made by `vocabseg.load`."""

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        engine: str | None = None,
        precision: str | None = None,
        kernels: str | None = None,
    ):
        self.bundle = bundle
        # On a GPU it is a CudaSegmenter that runs; `open_segmenter` takes the one that is due.
        cpu = "cpu" if device == "auto" else device
        self.choice = engines.choose(engine, cpu, precision, bundle.manifest.graph_bytes)
        if self.choice.device != "cpu":
            raise EngineError(f"a Segmenter does not run on {device}: open it with vocabseg.load")
        bundle.graph("image_encoder", self.choice.variant)  # a bundle without this precision is told at once
        self.kernels = load_kernels(kernels)
        self._engines: dict[str, engines.Engine] = {}
        self._making = threading.Lock()
        self.text = TextEmbedder(bundle, self.engine)

    def engine(self, graph: str) -> engines.Engine:
        """The engine of one of the bundle's graphs; it opens when first run."""
        with self._making:
            if graph not in self._engines:
                self._engines[graph] = self._make_engine(graph)
            return self._engines[graph]

    def _make_engine(self, graph: str) -> engines.Engine:
        record = self.bundle.graph(graph, self.choice.variant)
        digest = None if record.file == self.bundle.graph(graph).file else record.digest()
        choice = self.choice.for_graph(graph)
        if choice.precision in engines.QUANTISED and record.dtype == "float32":
            # Of a quantised bundle, the text encoder, which runs once per name, and what has to stay as it is.
            choice = msgspec.structs.replace(choice, precision="float32")
        return engines.Engine(self.bundle.path(record.file), choice, digest, batched=graph == "image_encoder")

    def vocabulary(self, vocabulary: Names | None = None) -> Vocabulary:
        """The vocabulary given, or else the bundle's own; raises VocabularyError where there is neither."""
        if vocabulary is not None:
            return Vocabulary.of(vocabulary)
        own = self.bundle.manifest.vocabulary
        if own is None:
            raise VocabularyError(f"bundle {self.bundle.folder} declares no vocabulary: give class names")
        return Vocabulary(own, self.bundle.manifest.seen)

    def __call__(self, image: Any, vocabulary: Names | None = None, progress: Progress | None = None) -> Result:
        """Segment one image (a path, PIL image or uint8 RGB array) into the classes of `vocabulary`.

        Raises ImageError or VocabularyError for input that cannot be used. Names are embedded before the image is
        looked at, so that bad names fail at once.
        """
        vocabulary = self.vocabulary(vocabulary)
        self.embed_names(vocabulary, progress)
        regions = self.propose(image, progress)
        return regions.classify(vocabulary)

    def embed_names(self, vocabulary: Vocabulary, progress: Progress | None = None) -> None:
        """Run the text encoder for names it has not seen yet; raises VocabularyError for names that are too long."""
        report = None if progress is None else lambda done, total: progress("encoding names", done, total)
        prompts = self.bundle.manifest.prompts
        for prompt in (prompts.query, prompts.region):  # the second time is free where they are equal
            self.text.embed(vocabulary.names, prompt, vocabulary.templates, report)

    def segment_many(self, images: Iterable[Any], vocabulary: Names | None = None) -> Iterator[Result]:
        """Segment images one after the other; each result equals that of a call with the image alone.

        While the regions of one image are encoded, the next one is read and its proposals are found; a small model
        works on as many images as there are threads. What is wrong with an image is raised when its turn comes.
        """
        vocabulary = self.vocabulary(vocabulary)
        self.embed_names(vocabulary)
        yield from self.segment_pairs((image, vocabulary) for image in images)

    def segment_pairs(self, pairs: Iterable[tuple[Any, Vocabulary]]) -> Iterator[Result]:
        """`segment_many` with a vocabulary for each image: what a server does with the requests it has at hand.

        Proposals and the embeddings of regions do not depend on the vocabulary, so nothing is lost by mixing them.
        """
        threads = thread_count()
        if threads > 1 and self._is_small():
            with ThreadPoolExecutor(threads, "images", limit_threads, (1,)) as pool:
                yield from _ahead(pool, self._segment_pair, pairs, threads)
            return
        vocabularies: deque[Vocabulary] = deque()

        def images() -> Iterator[Any]:
            for image, vocabulary in pairs:
                vocabularies.append(vocabulary)
                yield image

        with ThreadPoolExecutor(1, "proposals") as pool:
            for proposals in _ahead(pool, self._find_proposals, images()):
                yield self.describe(*proposals).classify(vocabularies.popleft())

    def _is_small(self) -> bool:
        """Whether images are best segmented side by side, on a thread each: nothing waits, and the sum is the same.

        A large model would need the memory of many images at a time, and its products fill several cores as they are.
        """
        return self.choice.name == "onnxruntime" and self.bundle.manifest.graph_bytes <= engines.SMALL_MODEL_BYTES

    def _segment_pair(self, pair: tuple[Any, Vocabulary]) -> Result:
        return self.propose(pair[0]).classify(pair[1])

    def propose(self, image: Any, progress: Progress | None = None) -> Regions:
        """Everything that does not depend on class names: proposals, crops and their embeddings.

        `image` is a path, a PIL image or a (H, W, 3) uint8 RGB array. Raises ImageError when it cannot be used.
        """
        return self.describe(*self._find_proposals(image, progress), progress)

    def _find_proposals(
        self, image: Any, progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Size]:
        """The first arguments of `describe`, from the image."""
        tick = progress or _silent
        tick("reading the image", 0, 1)
        pixels = load_image(image)
        spec = self.bundle.manifest.input
        size = resized_size(pixels.shape[0], pixels.shape[1], spec.min_size, spec.max_size)
        padded = padded_size(*size, spec.divisor)
        network_input, resized = self.kernels.resize_normalize(pixels, size, padded, spec.mean, spec.std)
        tick("finding proposals", 0, 1)
        outputs = self.engine("proposal").run({"image": network_input})
        return pixels, resized, outputs["mask_logits"][0], outputs["query_embeddings"][0], padded

    def regions(self, image: Any, masks: np.ndarray, progress: Progress | None = None) -> Regions:
        """Regions from masks of one's own, (N, H, W) bool or float probabilities in 0..1, of the image's size.

        They are classified by the image encoder alone, since no query stands behind them; pixels that no mask covers
        get the label -1. Raises ImageError when image and masks do not fit together.
        """
        pixels = load_image(image)
        size = (pixels.shape[0], pixels.shape[1])
        return self.describe(pixels, pixels, _mask_logits(masks, size), None, size, progress)

    def describe(
        self,
        image: np.ndarray,
        resized: np.ndarray,
        mask_logits: np.ndarray,
        query_embeddings: np.ndarray | None,
        padded: Size,
        progress: Progress | None = None,
    ) -> Regions:
        """Regions from proposals that are already there: thresholds the masks, cuts and encodes their crops.

        image (H, W, 3) and resized (h, w, 3) uint8 RGB, mask_logits (N, hm, wm) float32 over `padded` (Hp, Wp),
        query_embeddings (N, Dq) float32, or None for masks without queries.
        """
        manifest = self.bundle.manifest
        size = (resized.shape[0], resized.shape[1])
        boxes, areas = self.kernels.region_boxes(mask_logits, padded, size, manifest.region.mask_threshold)
        valid = areas > 0
        embeddings = None
        if manifest.ensemble.enabled or query_embeddings is None:
            indices = np.flatnonzero(valid)
            embeddings = self._encode(resized, mask_logits, padded, boxes[valid], indices, progress or _silent)
        return Regions(
            image=image,
            image_size=size,
            padded_size=padded,
            mask_logits=mask_logits,
            query_embeddings=query_embeddings,
            boxes=boxes[valid],
            valid=valid,
            areas=areas,
            embeddings=embeddings,
            ensemble=manifest.ensemble,
            text=self.text,
            kernels=self.kernels,
        )

    def crops(
        self, resized: np.ndarray, mask_logits: np.ndarray, padded: Size, boxes: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[np.ndarray, slice]]:
        """The encoder's input for V regions, in chunks: (crops (v, 3, S, S) float32, which of the regions they are).

        boxes (V, 4) int32 are the tight ones, indices (V,) say which mask belongs to each.
        """
        spec = self.bundle.manifest.region
        for start in range(0, len(boxes), CROPS_PER_CHUNK):
            part = slice(start, start + CROPS_PER_CHUNK)
            crops = cut_crops(self.kernels, spec, resized, mask_logits, padded, boxes[part], indices[part])
            yield crops, part

    def _encode(
        self,
        resized: np.ndarray,
        mask_logits: np.ndarray,
        padded: Size,
        boxes: np.ndarray,
        indices: np.ndarray,
        tick: Progress,
    ) -> np.ndarray:
        """Unit-length embeddings (V, D) of the regions, chunk by chunk so that memory stays bounded."""
        if not len(boxes):
            return np.zeros((0, int(self.bundle.graph("image_encoder").outputs[0].shape[-1])), np.float32)
        chunks = []
        for crops, part in self.crops(resized, mask_logits, padded, boxes, indices):
            tick("encoding regions", part.start, len(boxes))
            chunks.append(self.engine("image_encoder").run({"crops": crops})["image_features"])
        tick("encoding regions", len(boxes), len(boxes))
        features = np.concatenate(chunks).astype(np.float32, copy=False)
        return features / np.linalg.norm(features, axis=1, keepdims=True)


def load(
    bundle: str | Path | None = None,
    device: str = "auto",
    engine: str | None = None,
    precision: str | None = None,
) -> Segmenter:
    """Open a bundle and make it ready to run.

    Args:
        bundle: the bundle's folder, as `vocabseg export` wrote it; None takes the built-in demo model.
        device: "auto", "cpu", "cuda" or "cuda:N"; "auto" is the first GPU, where there is one that can be used.
        engine: "openvino" or "onnxruntime", on a GPU "tensorrt" or "onnxruntime"; None takes the fastest installed.
        precision: "float32", "bfloat16" with OpenVINO, or "float16" with ONNX Runtime, which on a CPU serves to check
            what FP16 graphs compute on a GPU and is no faster than float32; None takes the engine's default.

    Raises BundleError when the bundle cannot be used and EngineError when the engine cannot.
    """
    return open_segmenter(open_bundle(bundle), device, engine, precision)


def open_segmenter(
    bundle: Bundle, device: str = "auto", engine: str | None = None, precision: str | None = None
) -> Segmenter:
    """`load` for a bundle that is open already."""
    choice = engines.choose(engine, device, precision, bundle.manifest.graph_bytes, bundle)
    if choice.device == "cpu":
        return Segmenter(bundle, "cpu", engine, precision)
    from vocabseg.runtime.cuda import open_device, parse_device
    from vocabseg.runtime.cuda_segmenter import CudaSegmenter

    return CudaSegmenter(bundle, choice, open_device(parse_device(choice.device)))


def _ahead(pool: Executor, function: Callable[[Item], Found], items: Iterable[Item], count: int = 1) -> Iterator[Found]:
    """`function` of every item, in order, `count` items ahead of whoever takes them; what `items` raises comes last."""
    coming: deque[Future[Found]] = deque()
    source, failure = iter(items), None
    try:
        while failure is None:
            try:
                coming.append(pool.submit(function, next(source)))
            except Exception as error:
                failure = error
            if len(coming) > count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
        if not isinstance(failure, StopIteration):
            raise failure
    finally:
        for future in coming:
            future.cancel()


def _silent(what: str, done: int, total: int) -> None:
    pass


def _mask_logits(masks: np.ndarray, size: Size) -> np.ndarray:
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.shape[1:] != size:
        raise ImageError(f"masks have shape {masks.shape}: give (N, {size[0]}, {size[1]}), the size of the image")
    if masks.dtype == bool:
        return np.where(masks, np.float32(CERTAIN), np.float32(-CERTAIN))
    if not np.issubdtype(masks.dtype, np.floating):
        raise ImageError(f"masks have dtype {masks.dtype}: give bool, or float probabilities in 0..1")
    low, high = (float(masks.min()), float(masks.max())) if masks.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise ImageError(f"masks hold values from {low:g} to {high:g}: give probabilities in 0..1")
    with np.errstate(divide="ignore"):
        probabilities = masks.astype(np.float32)
        return np.clip(np.log(probabilities) - np.log1p(-probabilities), -CERTAIN, CERTAIN)
