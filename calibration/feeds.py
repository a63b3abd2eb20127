"""Images -> what a bundle's graphs are fed with, by the runtime's own pipeline in float32."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vocabseg.calibration.images import Chosen
from vocabseg.runtime import engines
from vocabseg.runtime.bundle import Bundle
from vocabseg.runtime.geometry import padded_size, resized_size
from vocabseg.runtime.segmenter import Segmenter
from vocabseg.runtime.text_embedder import TextEmbedder
from vocabseg.runtime.vocabulary import Vocabulary

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
        self.segmenter = Segmenter(bundle, "cpu", None, "float32")
        self.seed = seed
        self.crops = crops

    def feeds(self, images: Iterable[tuple[int, Chosen]]) -> Iterator[ImageFeeds]:
        """The feeds of numbered images; which regions are cut depends on the seed and the number alone."""
        for number, image in images:
            yield self._feeds(number, image)

    def _feeds(self, number: int, image: Chosen) -> ImageFeeds:
        segmenter = self.segmenter
        pixels, spec = image.read(), segmenter.bundle.manifest.input
        size = resized_size(pixels.shape[0], pixels.shape[1], spec.min_size, spec.max_size)
        padded = padded_size(*size, spec.divisor)
        network_input, resized = segmenter.kernels.resize_normalize(pixels, size, padded, spec.mean, spec.std)
        mask_logits = segmenter.engine("proposal").run({"image": network_input})["mask_logits"][0]
        region = segmenter.bundle.manifest.region
        boxes, areas = segmenter.kernels.region_boxes(mask_logits, padded, size, region.mask_threshold)
        generator = np.random.default_rng((self.seed, number))
        picked = np.sort(generator.permutation(np.flatnonzero(areas > 0))[: self.crops])
        parts = [crops for crops, _ in segmenter.crops(resized, mask_logits, padded, boxes[picked], picked)]
        none = np.zeros((0, 3, region.crop_size, region.crop_size), np.float32)
        return ImageFeeds(image.name, network_input, np.concatenate([none, *parts]))


class _Recording:
    """An engine that keeps what it is fed with."""

    def __init__(self, engine: engines.Engine):
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
