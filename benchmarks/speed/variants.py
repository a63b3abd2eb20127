"""The ways of running a model that are measured against each other, each behind one small interface."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from vocabseg.benchmarks.speed.results import GRAPH_STAGES
from vocabseg.benchmarks.speed.stages import Stopwatch, Timeline
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.engines.interface import graph_precision
from vocabseg.runtime.images import load_image
from vocabseg.runtime.masks import Masks, Size
from vocabseg.runtime.segmenter.regions import Regions
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Run:
    """Seconds of one run from the image file to its labels, by stage and in all, and how many regions it had."""

    stages: dict[str, float]
    total: float
    regions: int


@dataclass(frozen=True)
class Capture:
    """What every stage gave for one image; N masks, V of them valid, K classes.

    Attributes:
        resized: (h, w, 3) uint8 RGB.
        network_input: (1, 3, Hp, Wp) float32.
        mask_logits: (N, hm, wm) float32; query_embeddings: (N, D) float32.
        valid: (N,) bool; boxes: (V, 4) int, tight.
        crops: (V, 3, S, S) float32 and embeddings: (V, D) float32; None where no crop was encoded.
        probabilities: (M, K) float32 of the masks `voters` (M,).
        labels: (H, W) int32; margin: (H, W) float32, by how much the best class leads at each pixel.
    """

    resized: np.ndarray
    network_input: np.ndarray
    mask_logits: np.ndarray
    query_embeddings: np.ndarray
    valid: np.ndarray
    boxes: np.ndarray
    crops: np.ndarray | None
    embeddings: np.ndarray | None
    probabilities: np.ndarray
    voters: np.ndarray
    labels: np.ndarray
    margin: np.ndarray

    @property
    def padded(self) -> Size:
        """(Hp, Wp)."""
        return self.network_input.shape[2], self.network_input.shape[3]

    @property
    def size(self) -> Size:
        """(h, w)."""
        return self.resized.shape[0], self.resized.shape[1]

    @property
    def masks(self) -> Masks:
        """The masks as the networks saw the image, so at its size there."""
        return Masks(self.mask_logits, self.padded, self.size, self.size)


class Variant(Protocol):
    """A model that is open and ready to run; images are files."""

    def run(self, image: Path) -> Run:
        """Segment one image, timed."""
        ...

    def capture(self, image: Path) -> Capture:
        """Segment one image and keep everything."""
        ...

    def capture_from(self, image: Path, given: Capture) -> Capture:
        """Every stage on its own: proposals from the given network input, all that follows from the given proposals."""
        ...

    def many(self, images: Sequence[Path]) -> float:
        """Seconds of segmenting several images in one go."""
        ...

    def labels(self, image: Path) -> np.ndarray:
        """The label map (H, W) of one image."""
        ...

    def text(self, names: Sequence[str]) -> float:
        """Seconds that encoding these names takes, nothing remembered."""
        ...


class Spec(Protocol):
    """A variant that can be opened, in another process too."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def open(self) -> Variant: ...


@dataclass(frozen=True)
class EngineSpec:
    """A bundle on one of the runtime's engines."""

    folder: Path
    engine: str
    precision: str
    vocabulary: Vocabulary
    settings: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The engine, with its precision where that is not the usual one."""
        return self.engine if self.precision == "float32" else f"{self.engine} {self.precision}"

    def open(self) -> Variant:
        """Open the bundle on the engine; raises BundleError or EngineError."""
        return EngineVariant(self)


def stage_precision(spec: Spec, stage: str) -> str:
    """The precision in which a stage runs: a network in that of the variant or of its graph, kernels in float32."""
    if stage not in GRAPH_STAGES:
        return "float32"
    return graph_precision(stage, spec.precision) if isinstance(spec, EngineSpec) else spec.precision


class EngineVariant:
    """A bundle's own pipeline, observed; a GPU times its stages by events, and nothing is slowed."""

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        bundle = open_adjusted(spec.folder, spec.settings)
        self.segmenter = Segmenter(bundle, spec.device, spec.engine, spec.precision)
        self._device = self.segmenter.device
        self._free = self._lowest = self._free_memory()
        self._clock = Stopwatch(*(() if self._device is None else (self._device.synchronize,)))
        self.segmenter.embed_names(spec.vocabulary)

    @contextmanager
    def _observed(self, keep: bool = False) -> Iterator[Timeline]:
        timeline = self.segmenter.stages.observer = Timeline(keep)
        yield timeline
        self.segmenter.stages.observer = None

    def run(self, image: Path) -> Run:
        """Segment one image, timed: decoding and the whole by the clock, stages by the device's own marks."""
        clock = self._clock
        clock.start()
        with self._observed() as timeline:
            begin = clock.now()
            with clock.measure("decode"):
                pixels = load_image(image)
            regions = self.segmenter.propose(pixels)
            regions.classify(self.spec.vocabulary)
            total = clock.now() - begin
        self._look_at_memory()
        return Run({**clock.seconds, **timeline.seconds()}, total, int(regions.valid.sum()))

    def many(self, images: Sequence[Path]) -> float:
        """Seconds of `segment_many` over the images; each result is dropped when the next one comes."""
        begin = self._clock.now()
        for _ in self.segmenter.segment_many(images, self.spec.vocabulary):
            pass
        spent = self._clock.now() - begin
        self._look_at_memory()
        return spent

    def labels(self, image: Path) -> np.ndarray:
        """The label map (H, W) int32."""
        return self.segmenter(image, self.spec.vocabulary).labels

    def text(self, names: Sequence[str]) -> float:
        """Seconds for both sides' prompts."""
        segmenter = self.segmenter
        embedder = TextEmbedder(segmenter.bundle, segmenter.engine, cache_dir="")
        prompts = segmenter.bundle.manifest.prompts
        begin = self._clock.now()
        for prompt in (prompts.query, prompts.region):  # the second time is free where they are equal
            embedder.embed(names, prompt)
        return self._clock.now() - begin

    def capture(self, image: Path) -> Capture:
        """Segment one image and keep everything."""
        with self._observed(keep=True) as timeline:
            regions = self.segmenter.propose(image)
        kept = timeline.kept
        return self._captured(regions, kept, kept["network_input"][0], kept["resized"][0])

    def capture_from(self, image: Path, given: Capture) -> Capture:
        """Every stage on its own, fed with what `given` has."""
        segmenter, first = self.segmenter, self.capture(image)
        outputs = segmenter.engine("proposal").run({"image": given.network_input})
        with self._observed(keep=True) as timeline:
            regions = segmenter.describe(
                load_image(image), given.resized, given.mask_logits, given.query_embeddings, given.padded
            )
        captured = self._captured(regions, timeline.kept, first.network_input, first.resized)
        found = (outputs["mask_logits"][0], outputs["query_embeddings"][0])
        return replace(captured, mask_logits=found[0], query_embeddings=found[1])

    def _captured(
        self, regions: Regions, kept: dict[str, list[np.ndarray]], network_input: np.ndarray, resized: np.ndarray
    ) -> Capture:
        result = regions.classify(self.spec.vocabulary)
        assert result.evidence is not None
        assert regions.query_embeddings is not None
        crops = kept.get("crops")
        return Capture(
            resized=resized,
            network_input=network_input.astype(np.float32, copy=False),
            mask_logits=regions.mask_logits,
            query_embeddings=regions.query_embeddings,
            valid=regions.valid,
            boxes=regions.boxes,
            crops=None if not crops else np.concatenate(crops).astype(np.float32, copy=False),
            embeddings=regions.embeddings if crops else None,
            probabilities=result.evidence.class_probabilities,
            voters=regions.voters,
            labels=result.labels,
            margin=lead(result.class_scores()),
        )

    def device_memory(self) -> int:
        """Bytes of the GPU that this process took beyond its context, at the most seen after a run; 0 on a CPU."""
        return self._free - self._lowest

    def _free_memory(self) -> int:
        return 0 if self._device is None else self._device.memory()["free"]

    def _look_at_memory(self) -> None:
        self._lowest = min(self._lowest, self._free_memory())


def lead(scores: np.ndarray) -> np.ndarray:
    """By how much the best class leads: (K, H, W) -> (H, W) float32; infinite where there is no second class."""
    if len(scores) < 2:
        return np.full(scores.shape[1:], np.inf, np.float32)
    best = np.partition(scores, -2, axis=0)[-2:]
    return (best[1] - best[0]).astype(np.float32)
