"""Segmenter: the one pipeline from an image to its labels, written once for every device."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import msgspec
import numpy as np

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.engines.choose import SMALL_MODEL_BYTES, choose
from vocabseg.runtime.engines.host_engines import HostEngines
from vocabseg.runtime.engines.interface import KeyedRunnable
from vocabseg.runtime.errors import (
    BundleError,
    EngineError,
    ImageError,
    OnError,
    VocabsegError,
    VocabularyError,
    sifted,
)
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.masks import Masks, Size
from vocabseg.runtime.progress import Progress, silent
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.host_stages import HostProposals, HostStages
from vocabseg.runtime.segmenter.many import Line, Outcome, one_ahead, side_by_side
from vocabseg.runtime.segmenter.regions import Regions
from vocabseg.runtime.segmenter.stages import Proposals, Stages
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.runtime.threads import thread_count

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.device import Device

Names = Vocabulary | Sequence[str] | str
# The embeddings (V, D) of an image's regions that are known already, NaN for the others; None if none is.
Known = Callable[[HostProposals], np.ndarray | None]

# Logit that stands for certainty in user-supplied masks: sigmoid(40) rounds to 1 in float32.
CERTAIN = 40.0


class Segmenter:
    """A bundle ready to run on this machine; created by `vocabseg.load`. Thread-safe.

    With a GPU, images may already be there: anything with `__cuda_array_interface__` or `__dlpack__` of (H, W, 3) uint8
    RGB, C-contiguous. They must not be modified until the result is available.
    """

    per_pixel = False  # the kind of bundle that this class runs

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        engine: str | None = None,
        precision: str | None = None,
        kernels: str | None = None,
        literal: bool = False,
    ):
        """As `load`, for an open bundle; `kernels` "reference" selects the slow ones on the host.

        `literal`: ONNX Runtime on a CPU computes quantised graphs as they are written (`Choice.literal`).
        """
        if bundle.manifest.per_pixel != self.per_pixel:
            raise BundleError(
                f"{bundle.manifest.name} is a per-pixel model, which has no regions: open it with vocabseg.load, "
                "or use a two-stage model here"
            )
        self.bundle = bundle
        self.choice = choose(engine, device, precision, bundle.manifest.graph_bytes, bundle)
        if literal:
            self.choice = msgspec.structs.replace(self.choice, literal=True)
        manifest = bundle.manifest
        self.kernels = load_kernels(kernels)  # of the host: on a GPU, for later queries of results
        (width,) = manifest.graphs["image_encoder"].outputs[0].shape[-1:]
        self._host = HostStages(
            manifest.input, manifest.region, self._run, self.kernels, manifest.ensemble, int(width),
            self._objects,
        )  # fmt: skip
        self.stages: Stages = self._host
        self.device: Device | None = None
        if self.choice.on_gpu:
            from vocabseg.runtime.cuda.device import open_device, parse_device
            from vocabseg.runtime.segmenter.cuda_stages import CudaStages

            self.device = open_device(parse_device(self.choice.device))
            self.stages = stages = CudaStages(self.device, bundle, self.choice, self._objects)
            self._engines: Any = stages.engine
        else:
            self._engines = HostEngines(bundle, self.choice)
        self.text = TextEmbedder(bundle, self.engine, embed_image=self._embed_example)
        self._encoder_opening: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"Segmenter({self.bundle.manifest.name!r}, {self.choice.key})"

    def engine(self, graph: str) -> KeyedRunnable:
        """The engine of one of the bundle's graphs, opened on its first run; `run` takes host arrays."""
        return self._engines(graph)  # type: ignore[no-any-return]

    def _objects(self) -> np.ndarray:
        return self.text.object_matrix()

    def _know_objects(self) -> None:
        """Embed what a region budget tells objects by, before a GPU's lock is taken: the text encoder needs it, too."""
        if self.choice.on_gpu and self.bundle.manifest.region.budgeted and self.bundle.manifest.has_queries:
            self._objects()

    def _run(self, graph: str, inputs: Any) -> Any:
        return self.engine(graph).run(inputs)

    def vocabulary(self, vocabulary: Names | None = None) -> Vocabulary:
        """The given vocabulary, or else the bundle's own; raises VocabularyError if there is neither."""
        if vocabulary is not None:
            return Vocabulary.of(vocabulary)
        own = self.bundle.manifest.vocabulary
        if own is None:
            raise VocabularyError(f"bundle {self.bundle.folder} declares no vocabulary: give class names")
        return Vocabulary(own, self.bundle.manifest.seen)

    def __call__(self, image: Any, vocabulary: Names | None = None, progress: Progress | None = None) -> Result:
        """Segment one image (a path, PIL image or uint8 RGB array) into the classes of `vocabulary`.

        Raises ImageError or VocabularyError for unusable input, and BundleError where masks must be given. Names are
        embedded before the image is read, so that bad names fail at once.
        """
        vocabulary = self.vocabulary(vocabulary)
        self.bundle.require_proposals()
        self.embed_names(vocabulary, progress)
        return self.propose(image, progress).classify(vocabulary)

    def embed_names(self, vocabulary: Vocabulary, progress: Progress | None = None) -> None:
        """Run the text encoder for names it has not seen yet; raises VocabularyError for names that are too long."""
        report = None if progress is None else lambda done, total: progress("encoding names", done, total)
        self.text.embed_names(vocabulary, report)

    def propose(self, image: Any, progress: Progress | None = None) -> Regions:
        """Everything that does not depend on class names: proposals, crops and their embeddings.

        `image` is a path, a PIL image or a (H, W, 3) uint8 RGB array. Raises ImageError if it cannot be used, and
        BundleError for a bundle without a proposal network. On a GPU it returns before the device is done; accessing an
        array waits for it.
        """
        self.bundle.require_proposals()
        return self._describe(self.stages, self._find_proposals(image, progress or silent), progress or silent)

    def _find_proposals(self, image: Any, progress: Progress = silent) -> Proposals:
        stages = self.stages
        self._know_objects()
        progress("reading the image", 0, 1)
        pixels = stages.load(image)
        self._open_encoder()
        progress("finding proposals", 0, 1)
        with stages.turn():
            return stages.propose(stages.prepare(pixels))

    def _open_encoder(self) -> None:
        """Begin once to open the image encoder on the host, in a thread, while the proposal network opens and runs."""
        threads = thread_count()
        if self._encoder_opening is None and threads > 1 and not self.choice.on_gpu and self.bundle.manifest.encodes:
            engine = self._engines("image_encoder")
            self._encoder_opening = threading.Thread(target=engine.open_early, args=(threads,), name="open encoder")
            self._encoder_opening.start()

    def _describe(
        self, stages: Stages, proposals: Proposals, progress: Progress = silent, known: Known | None = None
    ) -> Regions:
        """Threshold the masks, cut and encode the regions' crops, but for those whose embeddings are `known`."""
        with stages.turn():
            stages.describe(proposals)
            if known is not None and isinstance(proposals, HostProposals):
                proposals.known = known(proposals)
            if self.bundle.manifest.ensemble.enabled or not proposals.has_queries:
                stages.encode(proposals, progress)
            return self._regions(stages, proposals)

    def _regions(self, stages: Stages, proposals: Proposals) -> Regions:
        arrays = stages.finish(proposals)
        return Regions(proposals.masks, arrays, stages, self.bundle.manifest.ensemble, self.text)

    def regions(self, image: Any, masks: np.ndarray, progress: Progress | None = None) -> Regions:
        """Regions from user-supplied masks, (N, H, W) bool or float probabilities in 0..1, of the image's size.

        As they have no queries, the image encoder alone classifies them; pixels that no mask covers get the label -1.
        Raises ImageError if image and masks do not match.
        """
        pixels = load_image(image)
        size = (pixels.shape[0], pixels.shape[1])
        return self.describe(pixels, pixels, _mask_logits(masks, size), None, size, progress)

    def _embed_example(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(D,) float32: what the image encoder makes of the part of an image under a mask, as of a region's crop."""
        embeddings = self.regions(image, mask[None]).embeddings
        if embeddings is None or not len(embeddings):
            raise VocabularyError("the object in an example is smaller than a pixel of the model: give a larger one")
        row: np.ndarray = embeddings[0]
        return row

    def describe(
        self,
        image: np.ndarray,
        resized: np.ndarray,
        mask_logits: np.ndarray,
        query_embeddings: np.ndarray | None,
        padded: Size,
        progress: Progress | None = None,
    ) -> Regions:
        """Regions from existing proposals on the host.

        image (H, W, 3) and resized (h, w, 3) uint8 RGB, mask_logits (N, hm, wm) float32 over `padded` (Hp, Wp),
        query_embeddings (N, Dq) float32, or None for masks without queries.
        """
        sizes = [(array.shape[0], array.shape[1]) for array in (resized, image)]
        if query_embeddings is not None:
            self._know_objects()
        stages = self.stages if len(mask_logits) else self._host  # GPU kernels need at least one mask
        with stages.turn():
            proposals = stages.given(image, resized, Masks(mask_logits, padded, *sizes), query_embeddings)
        return self._describe(stages, proposals, progress or silent)

    @overload
    def segment_many(
        self, images: Iterable[Any], vocabulary: Names | None = None, on_error: Literal["raise", "skip"] = "raise"
    ) -> Iterator[Result]: ...
    @overload
    def segment_many(
        self, images: Iterable[Any], vocabulary: Names | None = None, *, on_error: Literal["yield"]
    ) -> Iterator[Outcome]: ...
    def segment_many(
        self, images: Iterable[Any], vocabulary: Names | None = None, on_error: OnError = "raise"
    ) -> Iterator[Outcome]:
        """Segment images in order; each result equals that of a call with the image alone.

        While the regions of one image are encoded, the next one is read and its proposals are found; a small model
        works on as many images as there are threads, and a GPU encodes regions of several images together.

        `on_error` says what becomes of an image that cannot be read or is too large for the device's memory: its
        ImageError or DeviceMemoryError is raised when its turn comes, which ends the iteration ("raise"); the image is
        left out ("skip"); or the error takes the place of the result ("yield"). All other errors are raised.
        Raises VocabularyError for unusable names, ConfigurationError for another `on_error`, and BundleError for a
        bundle without a proposal network.
        """
        self.bundle.require_proposals()
        vocabulary = self.vocabulary(vocabulary)
        self.embed_names(vocabulary)
        yield from sifted(self._outcomes((image, vocabulary) for image in images), on_error)

    def segment_pairs(self, pairs: Iterable[tuple[Any, Vocabulary]]) -> Iterator[Result]:
        """`segment_many` with a vocabulary for each image, such as a server's waiting requests.

        Proposals and region embeddings do not depend on the vocabulary, so mixing vocabularies costs nothing. An
        image's error is raised when its turn comes.
        """
        self.bundle.require_proposals()
        for outcome in self._outcomes(pairs):
            if isinstance(outcome, VocabsegError):
                raise outcome
            yield outcome

    def segment_sequence(self, images: Iterable[Any], vocabulary: Names | None, known: Known) -> Iterator[Result]:
        """`segment_many` for the frames of a video, on a CPU: regions whose embeddings are `known` are not encoded.

        `known` is called with each image's described proposals, in the order of the images, when all those before are
        encoded. Raises EngineError on a GPU, and for a per-pixel model, which has no regions.
        """
        if self.choice.on_gpu or self.per_pixel:
            where = "on a GPU" if self.choice.on_gpu else "by a per-pixel model"
            raise EngineError(f"embeddings of regions are not reused {where}: segment without reuse")
        self.bundle.require_proposals()
        vocabulary = self.vocabulary(vocabulary)
        self.embed_names(vocabulary)
        finish = lambda found, names: self._describe(self.stages, found, known=known).classify(names)  # noqa: E731
        for outcome in one_ahead(self._find_proposals, finish, ((image, vocabulary) for image in images)):
            if isinstance(outcome, VocabsegError):
                raise outcome
            yield outcome

    def _outcomes(self, pairs: Iterable[tuple[Any, Vocabulary]]) -> Iterator[Outcome]:
        threads = thread_count()
        if self.choice.on_gpu:
            self._know_objects()
            stages: Any = self.stages
            return Line(stages, lambda proposals: self._regions(stages, proposals)).segment(pairs)
        if threads > 1 and self.small:
            return side_by_side(lambda pair: self.propose(pair[0]).classify(pair[1]), pairs, threads)
        return one_ahead(
            self._find_proposals, lambda proposals, names: self._describe(self.stages, proposals).classify(names), pairs
        )

    @property
    def small(self) -> bool:
        """Whether images are best segmented in parallel, a CPU's thread each: no thread waits, at the same total cost.

        A large model would need memory for many images at a time, and its matrix products already fill several cores.
        """
        on_cpu = self.choice.name == "onnxruntime" and not self.choice.on_gpu
        return on_cpu and self.bundle.manifest.graph_bytes <= SMALL_MODEL_BYTES


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
