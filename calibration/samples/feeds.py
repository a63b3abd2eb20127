"""Images -> what a bundle's graphs are fed with, by the runtime's own pipeline in float32."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vocabseg.calibration.samples.calibration_images import CalibrationImage
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.engines.interface import KeyedRunnable
from vocabseg.runtime.segmenter.host_stages import HostStages
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary

# Regions taken of one image: its regions overlap, so more of them would add little.
CROPS = 8


@dataclass(frozen=True)
class ImageFeeds:
    """What one image gives: the proposal network's input, and the image encoder's inputs for v regions, v from 0 on."""

    network_input: np.ndarray
    encoder_inputs: dict[str, np.ndarray]

    def of(self, graph: str) -> dict[str, np.ndarray]:
        """The inputs of a graph by name."""
        return {"image": self.network_input} if graph == "proposal" else self.encoder_inputs


class FeedMaker:
    """Runs the pipeline of a bundle on a CPU up to each graph's input."""

    def __init__(self, bundle: Bundle, seed: int):
        stages = Segmenter(bundle, "cpu", None, "float32").stages
        assert isinstance(stages, HostStages)
        self.stages, self.seed = stages, seed

    def feeds(self, number: int, image: CalibrationImage) -> ImageFeeds:
        """The feeds of an image; which regions are cut depends on the seed and the image's number alone."""
        prepared = self.stages.prepare(image.read())
        proposals = self.stages.propose(prepared)
        self.stages.describe(proposals)
        generator = np.random.default_rng((self.seed, number))
        regions = np.sort(generator.permutation(len(proposals.boxes))[:CROPS])
        return ImageFeeds(prepared.network_input, self.stages.encoder_inputs_of(proposals, regions))


def filled(feeds: Sequence[ImageFeeds], graph: str) -> list[dict[str, np.ndarray]]:
    """The feeds of a graph; images without a region have no crops and are left out."""
    found = [feed.of(graph) for feed in feeds]
    return [feed for feed in found if all(len(array) for array in feed.values())]


class _Recorder:
    """An engine that keeps what it is fed with."""

    def __init__(self, engine: KeyedRunnable):
        self.key = engine.key
        self.fed: list[dict[str, np.ndarray]] = []
        self._engine = engine

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.fed.append(dict(inputs))
        return self._engine.run(inputs)


def text_feed(bundle: Bundle, graph: str, vocabulary: Vocabulary, most: int = 64) -> dict[str, np.ndarray]:
    """What one of the bundle's text encoders is fed with for the first `most` names: up to 64 sequences."""
    recorder = _Recorder(Segmenter(bundle, "cpu", None, "float32").engine(graph))
    embedder = TextEmbedder(bundle, lambda name: recorder, cache_dir="")
    prompts = bundle.manifest.prompts
    prompt = prompts.query if prompts.query.graph == graph else prompts.region
    embedder.embed((vocabulary.spoken or vocabulary.names)[:most], prompt, vocabulary.templates)
    return recorder.fed[0]
