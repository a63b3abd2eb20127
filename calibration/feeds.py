"""Images -> what a bundle's graphs are fed with, by the runtime's own pipeline in float32."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vocabseg.calibration.images import Chosen
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.engines.interface import KeyedRunnable
from vocabseg.runtime.segmenter.host_stages import HostStages
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary

# Crops taken of one image: its regions overlap, so more of them tell little that is new.
CROPS = 8


@dataclass(frozen=True)
class ImageFeeds:
    """What one image gives: the proposal network's input, and some crops (v, 3, S, S) float32, v from 0 on."""

    name: str
    network_input: np.ndarray
    crops: np.ndarray

    def of(self, graph: str) -> dict[str, np.ndarray]:
        """The inputs of a graph by name."""
        return {"image": self.network_input} if graph == "proposal" else {"crops": self.crops}


class FeedMaker:
    """Runs the pipeline of a bundle on a CPU up to each graph's input."""

    def __init__(self, bundle: Bundle, seed: int, crops: int = CROPS):
        segmenter = Segmenter(bundle, "cpu", None, "float32")
        assert isinstance(segmenter.stages, HostStages)
        self.segmenter, self._stages = segmenter, segmenter.stages
        self.seed = seed
        self.crops = crops

    def feeds(self, images: Iterable[tuple[int, Chosen]]) -> Iterator[ImageFeeds]:
        """The feeds of numbered images; which regions are cut depends on the seed and the number alone."""
        for number, image in images:
            yield self._feeds(number, image)

    def _feeds(self, number: int, image: Chosen) -> ImageFeeds:
        stages = self._stages
        prepared = stages.prepare(image.read())
        proposals = stages.propose(prepared)
        stages.describe(proposals)
        generator = np.random.default_rng((self.seed, number))
        regions = np.sort(generator.permutation(len(proposals.boxes))[: self.crops])
        return ImageFeeds(image.name, prepared.network_input, stages.crops_of(proposals, regions))


class _Recording:
    """An engine that keeps what it is fed with."""

    def __init__(self, engine: KeyedRunnable):
        self.key = engine.key
        self.fed: list[dict[str, np.ndarray]] = []
        self._engine = engine

    def opened(self, graph: str) -> "_Recording":
        return self

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.fed.append(dict(inputs))
        return self._engine.run(inputs)


def text_feeds(segmenter: Segmenter, vocabulary: Vocabulary, most: int = 64) -> dict[str, dict[str, np.ndarray]]:
    """What the bundle's text encoders are fed with for the first `most` names, by graph; up to 64 sequences each."""
    prompts = segmenter.bundle.manifest.prompts
    found = {}
    for prompt in (prompts.query, prompts.region):
        recording = _Recording(segmenter.engine(prompt.graph))
        embedder = TextEmbedder(segmenter.bundle, recording.opened, cache_dir="")
        embedder.embed(vocabulary.names[:most], prompt, vocabulary.templates)
        found[prompt.graph] = recording.fed[0]
    return found
