"""Classes that are shown by images, among rows of text embeddings.

CLIP finds an image more similar to an image than to any text, so an example's embedding v is made shorter before it is
compared with regions: to the cosine that the best of many names reaches with it (the vocabulary's names, the bundle's
and common words), which is what a fitting name reaches with a region. Its length then is the only calibration there is.

The query side knows only text. A class with names beside its images has those; one without is as similar to a query as
the most similar name of any class, so that queries speak neither for nor against it. If no class has a name, there is
nothing to be calibrated against, and the images' embeddings, at full length, are the rows of both sides.
`python -m vocabseg.benchmarks.vocabulary_bench` measures all this.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.text import contrast
from vocabseg.runtime.text.encoder import normalise
from vocabseg.runtime.text.examples import ExampleImage
from vocabseg.runtime.text.prompts import shorten

if TYPE_CHECKING:
    from vocabseg.runtime.text.embedder import TextEmbedder
    from vocabseg.runtime.text.vocabulary import Vocabulary

Side = Literal["query", "region"]
# Pixels (H, W, 3) uint8 RGB and mask (H, W) bool -> (D,) float32, as a region's embedding.
EmbedImage = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Classes whose embeddings are kept: 2 MB of 512 float32 values.
REMEMBERED = 1000


class ExampleRows:
    """The embeddings of example images, one per class, computed once; thread-safe."""

    def __init__(self, embed_image: EmbedImage | None):
        self._embed_image = embed_image
        self._known: OrderedDict[tuple[str, ...], np.ndarray] = OrderedDict()  # by digests, which keep no pixels
        self._lock = threading.Lock()

    def rows(self, vocabulary: "Vocabulary", text: "TextEmbedder") -> dict[int, np.ndarray]:
        """(D,) float32 by class index: the mean of the images' embeddings, as long as the calibration says.

        Raises VocabularyError where the bundle or this use of it cannot compare them.
        """
        shown = {index: images for index, images in enumerate(vocabulary.examples) if images}
        if not shown:
            return {}
        prompts = text.bundle.manifest.prompts
        if self._embed_image is None or not text.bundle.manifest.encodes:
            raise VocabularyError(
                f"{shorten(vocabulary.names[next(iter(shown))])!r} is shown by images, which only an opened bundle "
                "with its ensemble enabled compares with regions: name it instead"
            )
        rows = {index: self._mean(images) for index, images in shown.items()}
        spoken = vocabulary.spoken
        if not spoken and vocabulary.contrast is None:
            if prompts.query.graph != prompts.region.graph:
                raise VocabularyError(
                    "this bundle compares queries with text alone: name one of the classes, or 'other'"
                )
            return rows
        names = (*spoken, *contrast.candidates(text.bundle.manifest.vocabulary or (), spoken))
        matrix = text.embed(names, prompts.region, vocabulary.templates)
        return {index: row * (matrix @ row).max() for index, row in rows.items()}

    def _mean(self, images: tuple[ExampleImage, ...]) -> np.ndarray:
        key = tuple(one.digest for one in images)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        assert self._embed_image is not None
        # Without the lock: a GPU's own lock is taken for it.
        row: np.ndarray = normalise(np.mean([self._embed_image(one.pixels, one.mask) for one in images], axis=0))
        with self._lock:
            self._known[key] = row
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return row


def row_counts(vocabulary: "Vocabulary", side: Side, names: int) -> list[int]:
    """How many rows each class has on a side, of a vocabulary with `names` names."""
    counts = [len(group) for group in vocabulary.texts]
    if vocabulary.contrast is not None:
        counts.append(names - sum(counts))
    if side == "query":
        return [count or names or 1 for count in counts]
    return [count + bool(images) for count, images in zip(counts, vocabulary.examples, strict=True)]


def class_rows(vocabulary: "Vocabulary", side: Side, text: np.ndarray, shown: dict[int, np.ndarray]) -> np.ndarray:
    """(R, D) float32: the rows of every class in order, from those of the names and those of the images."""
    parts: list[np.ndarray | Sequence[np.ndarray]] = []
    start = 0
    counts = [len(group) for group in vocabulary.texts]
    for index, count in enumerate([*counts, *([len(text) - sum(counts)] if vocabulary.contrast is not None else [])]):
        own = text[start : start + count]
        start += count
        if side == "region" or not len(text):
            parts += [[shown[index]]] if index in shown else []
        elif not count:
            own = text
        parts.append(own)
    return np.concatenate([np.asarray(part, np.float32).reshape(-1, text.shape[1]) for part in parts])
