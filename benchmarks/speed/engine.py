"""The runtime's engines as variants."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vocabseg.benchmarks.speed.results import GRAPH_STAGES
from vocabseg.benchmarks.speed.variants import Capture, TimedRun, Timeline, VariantSpec, lead, variant_name
from vocabseg.runtime.bundle.manifest import QUERIES
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.engines.interface import graph_precision
from vocabseg.runtime.images import load_image
from vocabseg.runtime.segmenter.regions import Regions
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class EngineSpec:
    """A bundle on one of the runtime's engines."""

    folder: Path
    engine: str
    precision: str
    vocabulary: Vocabulary
    settings: tuple[str, ...] = ()
    device: str = "cpu"
    limit: str = ""

    @property
    def name(self) -> str:
        """The engine, with its limit, and its precision where that is not the usual one."""
        return variant_name(self.engine, self.precision, self.limit)

    def open(self) -> "EngineVariant":
        """Open the bundle on the engine; raises BundleError or EngineError."""
        return EngineVariant(self)


def stage_precision(spec: VariantSpec, stage: str) -> str:
    """The precision in which a stage runs: a network in that of the variant or of its graph, kernels in float32."""
    if stage not in GRAPH_STAGES:
        return "float32"
    return graph_precision(stage, spec.precision) if isinstance(spec, EngineSpec) else spec.precision


class EngineVariant:
    """A bundle's own pipeline, observed; a GPU times its stages by events, without slowing them."""

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        bundle = open_adjusted(spec.folder, spec.settings)
        self.segmenter = Segmenter(bundle, spec.device, spec.engine, spec.precision)
        self._device = self.segmenter.device
        self._free = self._lowest = self._free_memory()
        self.segmenter.embed_names(spec.vocabulary)

    def _now(self) -> float:
        """The clock in seconds, once the device is at rest."""
        if self._device is not None:
            self._device.synchronize()
        return time.perf_counter()

    @contextmanager
    def _observed(self, keep: bool = False) -> Iterator[Timeline]:
        timeline = self.segmenter.stages.observer = Timeline(keep)
        yield timeline
        self.segmenter.stages.observer = None

    def run(self, image: Path) -> TimedRun:
        """Segment one image, timed: decoding and the whole by the clock, stages by the device's own marks."""
        with self._observed() as timeline:
            begin = self._now()
            pixels = load_image(image)
            decoded = self._now()
            regions = self.segmenter.propose(pixels)
            regions.classify(self.spec.vocabulary)
            total = self._now() - begin
        self._look_at_memory()
        stages = {"decode": decoded - begin, **timeline.seconds()}
        return TimedRun(stages, total, int(regions.valid.sum()), regions.crops)

    def many(self, images: Sequence[Path]) -> float:
        """Seconds of `segment_many` over the images; each result is dropped when the next one comes."""
        begin = self._now()
        for _ in self.segmenter.segment_many(images, self.spec.vocabulary):
            pass
        spent = self._now() - begin
        self._look_at_memory()
        return spent

    def labels(self, image: Path) -> np.ndarray:
        """The label map (H, W) int32."""
        return self.segmenter(image, self.spec.vocabulary).labels

    def text(self, names: Sequence[str]) -> float:
        """Seconds for both sides' prompts."""
        segmenter = self.segmenter
        embedder = TextEmbedder(segmenter.bundle, segmenter.engine, cache_dir="")  # nothing remembered
        prompts = segmenter.bundle.manifest.prompts
        begin = self._now()
        for prompt in (prompts.query, prompts.region):  # the second time is free where they are equal
            embedder.embed(names, prompt)
        return self._now() - begin

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
        queries = outputs.get(QUERIES)
        return replace(
            captured,
            mask_logits=outputs["mask_logits"][0],
            query_embeddings=None if queries is None else queries[0],
        )

    def _captured(
        self, regions: Regions, kept: dict[str, list[np.ndarray]], network_input: np.ndarray, resized: np.ndarray
    ) -> Capture:
        result = regions.classify(self.spec.vocabulary)
        assert result.evidence is not None
        crops, patches = (
            np.concatenate(kept[name]).astype(np.float32, copy=False) if name in kept else None
            for name in ("crops", "patch_mask")
        )
        return Capture(
            resized=resized,
            network_input=network_input.astype(np.float32, copy=False),
            mask_logits=regions.mask_logits,
            query_embeddings=regions.query_embeddings,
            valid=regions.valid,
            boxes=regions.boxes,
            crops=crops,
            embeddings=None if crops is None else regions.embeddings,
            probabilities=result.evidence.class_probabilities,
            voters=regions.voters,
            labels=result.labels,
            margin=lead(result.class_scores()),
            patch_masks=patches,
        )

    def device_memory(self) -> int:
        """Bytes of the GPU that this process took beyond its context, at the most seen after a run; 0 on a CPU."""
        return self._free - self._lowest

    def _free_memory(self) -> int:
        return 0 if self._device is None else self._device.memory()["free"]

    def _look_at_memory(self) -> None:
        self._lowest = min(self._lowest, self._free_memory())
