"""The ways of running a model that are measured against each other, each behind one small interface."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vocabseg.benchmarks.bench_results import GRAPH_STAGES
from vocabseg.benchmarks.bench_stages import ObservedSegmenter, Stopwatch
from vocabseg.runtime.engines import graph_precision
from vocabseg.runtime.images import load_image
from vocabseg.runtime.segmenter import Segmenter
from vocabseg.runtime.settings import open_adjusted
from vocabseg.runtime.text_embedder import TextEmbedder
from vocabseg.runtime.vocabulary import Vocabulary


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
    def padded(self) -> tuple[int, int]:
        """(Hp, Wp)."""
        return self.network_input.shape[2], self.network_input.shape[3]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.resized.shape[0], self.resized.shape[1]


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
        if self.device == "cpu":
            return EngineVariant(self)
        from vocabseg.benchmarks.bench_cuda import DeviceVariant

        return DeviceVariant(self)


def stage_precision(spec: Spec, stage: str) -> str:
    """The precision in which a stage runs: a network in that of the variant or of its graph, kernels in float32."""
    if stage not in GRAPH_STAGES:
        return "float32"
    return graph_precision(stage, spec.precision) if isinstance(spec, EngineSpec) else spec.precision


class PipelineVariant:
    """What a bundle's own pipelines have in common: a segmenter that answers, and a watch."""

    spec: EngineSpec
    segmenter: Segmenter
    watch: Stopwatch

    def many(self, images: Sequence[Path]) -> float:
        """Seconds of `segment_many` over the images; each result is dropped when the next one comes."""
        self.watch.start()
        begin = self.watch.now()
        for _ in self.segmenter.segment_many(images, self.spec.vocabulary):
            pass
        return self.watch.now() - begin

    def labels(self, image: Path) -> np.ndarray:
        """The label map (H, W) int32."""
        return self.segmenter(image, self.spec.vocabulary).labels

    def text(self, names: Sequence[str]) -> float:
        """Seconds for both sides' prompts."""
        segmenter = self.segmenter
        embedder = TextEmbedder(segmenter.bundle, segmenter.engine, cache_dir="")
        prompts = segmenter.bundle.manifest.prompts
        begin = self.watch.now()
        for prompt in (prompts.query, prompts.region):  # the second time is free where they are equal
            embedder.embed(names, prompt)
        return self.watch.now() - begin


class EngineVariant(PipelineVariant):
    """A bundle's own pipeline, observed."""

    segmenter: ObservedSegmenter

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        bundle = open_adjusted(spec.folder, spec.settings)
        self.segmenter = ObservedSegmenter(bundle, "cpu", spec.engine, spec.precision)
        self.watch = self.segmenter.watch
        self.segmenter.embed_names(spec.vocabulary)

    def run(self, image: Path) -> Run:
        """Segment one image, timed."""
        watch = self.segmenter.watch
        watch.start()
        begin = watch.now()
        with watch.measure("decode"):
            pixels = load_image(image)
        regions = self.segmenter.propose(pixels)
        self.segmenter.classify(regions, self.spec.vocabulary)
        return Run(dict(watch.seconds), watch.now() - begin, int(regions.valid.sum()))

    def capture(self, image: Path) -> Capture:
        """Segment one image and keep everything."""
        self.segmenter.watch.start(keep=True)
        return self._captured(self.segmenter.propose(image), *self._kept("resize_normalize"))

    def capture_from(self, image: Path, given: Capture) -> Capture:
        """Every stage on its own, fed with what `given` has."""
        segmenter = self.segmenter
        pixels, spec = load_image(image), segmenter.bundle.manifest.input
        segmenter.watch.start(keep=True)
        network_input, resized = segmenter.kernels.resize_normalize(
            pixels, given.size, given.padded, spec.mean, spec.std
        )
        outputs = segmenter.engine("proposal").run({"image": given.network_input})
        regions = segmenter.describe(pixels, given.resized, given.mask_logits, given.query_embeddings, given.padded)
        captured = self._captured(regions, network_input, resized)
        found = (outputs["mask_logits"][0], outputs["query_embeddings"][0])
        return replace(captured, mask_logits=found[0], query_embeddings=found[1])

    def _kept(self, stage: str) -> Any:
        return self.segmenter.watch.kept[stage][0]

    def _captured(self, regions: Any, network_input: np.ndarray, resized: np.ndarray) -> Capture:
        kept = self.segmenter.watch.kept
        result = self.segmenter.classify(regions, self.spec.vocabulary)
        probabilities, voters, _ = regions.probabilities(self.spec.vocabulary)
        crops = kept.get("crop_regions")
        return Capture(
            resized=resized,
            network_input=network_input,
            mask_logits=regions.mask_logits,
            query_embeddings=regions.query_embeddings,
            valid=regions.valid,
            boxes=regions.boxes,
            crops=None if not crops else np.concatenate(crops),
            embeddings=regions.embeddings if crops else None,
            probabilities=probabilities,
            voters=voters,
            labels=result.labels,
            margin=lead(result.class_scores()),
        )


def lead(scores: np.ndarray) -> np.ndarray:
    """By how much the best class leads: (K, H, W) -> (H, W) float32; infinite where there is no second class."""
    if len(scores) < 2:
        return np.full(scores.shape[1:], np.inf, np.float32)
    best = np.partition(scores, -2, axis=0)[-2:]
    return (best[1] - best[0]).astype(np.float32)
