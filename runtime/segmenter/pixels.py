"""The one-stage baseline: every pixel's embedding is compared with the names, without masks and regions.

It is the row "FCN" of Xu et al. 2022 (arXiv 2112.14757): the softmax over classes of each pixel, combined with one
class distribution of the whole image by CLIP, as the two-stage method combines those of a region. On a CPU only.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NoReturn

import msgspec
import numpy as np

from vocabseg.runtime.errors import EngineError, VocabsegError
from vocabseg.runtime.kernels.reference import resample_maps_at
from vocabseg.runtime.masks import Masks, Size
from vocabseg.runtime.progress import Progress, silent
from vocabseg.runtime.result.evidence import Evidence
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.classify import best_names, combine, region_distribution, softmax
from vocabseg.runtime.segmenter.many import Outcome, one_ahead
from vocabseg.runtime.segmenter.segmenter import CERTAIN, Segmenter
from vocabseg.runtime.segmenter.stages import check_usable
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary

# Memory for the enlarged embeddings of some rows of pixels at a time.
BAND_BYTES = 32 << 20


class PixelSegmenter(Segmenter):
    """A per-pixel bundle ready to run; created by `vocabseg.load`. Its results have labels and scores, and no masks."""

    per_pixel = True

    def __init__(self, *given: Any, **named: Any):
        """As `Segmenter`."""
        super().__init__(*given, **named)
        # The network takes images of any size, without padding.
        self._host.spec = msgspec.structs.replace(self._host.spec, divisor=1)

    def propose(self, image: Any, progress: Progress | None = None) -> "PixelFeatures":  # type: ignore[override]
        """Everything that does not depend on class names; `classify` then answers for any names.

        `image` as for `Segmenter.propose`. Raises ImageError if it cannot be used.
        """
        return self._features(image, progress or silent)

    def _features(self, image: Any, progress: Progress = silent) -> "PixelFeatures":
        stages = self._host
        progress("reading the image", 0, 1)
        prepared = stages.prepare(stages.load(image))
        progress("embedding pixels", 0, 1)
        outputs = self.engine("pixel_encoder").run({"image": prepared.network_input})
        check_usable("pixel encoder", **outputs)
        embeddings = outputs["pixel_embeddings"][0]
        (height, width), given = prepared.resized.shape[:2], prepared.image.shape[:2]
        rows, columns = embeddings.shape[1:]
        if (rows, columns) != (-(-height // 4), -(-width // 4)):
            raise EngineError(
                f"the pixel encoder gave a map of {rows} x {columns} for an image of {height} x {width} pixels, not a "
                "quarter of it: export the bundle again"
            )
        maps = Masks(embeddings, (4 * rows, 4 * columns), (height, width), (given[0], given[1]))
        whole = None
        if self.bundle.manifest.ensemble.enabled:
            proposals = stages.given(
                prepared.image, prepared.resized, whole_image(maps.image_size, maps.output_size), None
            )
            stages.describe(proposals)
            stages.encode(proposals, progress)
            whole = proposals.embeddings
        return PixelFeatures(prepared.image, maps, whole, self)

    def describe(self, *given: Any, **named: Any) -> NoReturn:  # type: ignore[override]
        """A per-pixel model has no regions; raises VocabsegError."""
        raise no_masks("regions")

    def regions(self, *given: Any, **named: Any) -> NoReturn:  # type: ignore[override]
        """A per-pixel model cannot classify user-supplied masks; raises VocabsegError."""
        raise no_masks("regions")

    def _outcomes(self, pairs: Iterable[tuple[Any, Vocabulary]]) -> Iterator[Outcome]:
        return one_ahead(self._features, lambda features, names: features.classify(names), pairs)


class PixelFeatures:
    """What a per-pixel model sees in one image, ready to be classified with any vocabulary.

    Attributes:
        image: (H, W, 3) uint8 RGB, the original image.
        maps: the embeddings (D, ceil(h/4), ceil(w/4)) float32 as `logits`, not normalised, with their sizes.
        whole: (1, D) float32 of unit length, CLIP's embedding of the whole image; None with the ensemble off.
    """

    def __init__(self, image: np.ndarray, maps: Masks, whole: np.ndarray | None, segmenter: PixelSegmenter):
        self.image, self.maps, self.whole = image, maps, whole
        self._ensemble = segmenter.bundle.manifest.ensemble
        self._text: TextEmbedder = segmenter.text

    def __repr__(self) -> str:
        height, width = self.maps.output_size
        return f"PixelFeatures({height} x {width} pixels)"

    def classify(self, vocabulary: Vocabulary | Sequence[str] | str) -> "PixelResult":
        """Label every pixel with a class of `vocabulary`; raises VocabularyError for names that cannot be used."""
        names = Vocabulary.of(vocabulary)
        labels = np.empty(self.maps.output_size, np.int32)
        scores = np.empty(self.maps.output_size, np.float32)
        for band, probabilities in self.probabilities(names):
            labels[band] = probabilities.argmax(axis=-1)
            scores[band] = probabilities.max(axis=-1)
        return PixelResult(labels, scores, names.names, self.image, self, names)

    def probabilities(self, vocabulary: Vocabulary) -> Iterator[tuple[slice, np.ndarray]]:
        """The class probabilities (rows, W, K) float32 of some rows of pixels at a time, and which rows they are.

        softmax(temperature x cosine) over the classes; with the ensemble the geometric mean with CLIP's distribution of
        the whole image, by the same exponents as in the two-stage method, or CLIP's alone if the weight is below 0.
        """
        text, (height, width) = self._text.text_matrix(vocabulary, "query"), self.maps.output_size
        temperature, weight = np.float32(self._ensemble.temperature), self._ensemble.weight
        first, seen = self._text.first_names(vocabulary, "query"), vocabulary.seen if self._ensemble.seen_rule else None
        first = None if first is None else first[:-1]  # there is no "no object"
        # The product with the text and both enlargements are linear, so that only the classes' maps are enlarged here.
        products = np.tensordot(text, self.maps.logits, 1)
        classes = Masks(products, self.maps.padded_size, self.maps.image_size, self.maps.output_size)
        whole = None
        if self.whole is not None:
            region_text = self._text.region_matrix(vocabulary)
            region_first = self._text.first_names(vocabulary, "region")
            whole = region_distribution(self.whole, region_text, 1, self._ensemble.temperature, region_first)
        for band in self._bands(len(text)):
            rows = range(*band.indices(height))
            found = resample_maps_at(classes, rows, range(width), _unchanged) / self._lengths[band]
            probabilities = softmax(best_names(temperature * found.reshape(len(text), -1).T, first))
            if whole is not None:
                everywhere = np.broadcast_to(whole, probabilities.shape)
                valid = np.ones(len(probabilities), bool)
                mixed = combine(probabilities, everywhere, valid, seen, weight)
                probabilities = everywhere if weight < 0 else mixed
            yield band, probabilities.reshape(len(rows), width, -1)

    @cached_property
    def _lengths(self) -> np.ndarray:
        """(H, W) float32: the length of each pixel's enlarged embedding."""
        height, width = self.maps.output_size
        lengths = np.empty((height, width), np.float32)
        for band in self._bands(len(self.maps)):
            enlarged = resample_maps_at(self.maps, range(*band.indices(height)), range(width), _unchanged)
            lengths[band] = np.sqrt(np.einsum("dyx,dyx->yx", enlarged, enlarged))
        return np.maximum(lengths, np.finfo(np.float32).tiny)

    def _bands(self, maps: int) -> Iterator[slice]:
        height, width = self.maps.output_size
        step = max(1, BAND_BYTES // (4 * 4 * maps * width))  # four of the image size around each, at most
        return (slice(start, min(start + step, height)) for start in range(0, height, step))


class PixelResult(Result):
    """A result whose scores are probabilities of single pixels: there are no masks to answer further questions from."""

    __slots__ = ("features", "vocabulary")

    def __init__(
        self, labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], image: np.ndarray | None,
        features: PixelFeatures, vocabulary: Vocabulary,
    ):  # fmt: skip
        super().__init__(labels, scores, classes, image, None, vocabulary.categories)
        self.features, self.vocabulary = features, vocabulary

    def confident(self, min_score: float) -> "PixelResult":
        """The same result with the label -1 where the winning score is below `min_score`."""
        labels = np.where(self.scores < min_score, np.int32(-1), self.labels)
        return PixelResult(labels, self.scores, self.classes, self.image, self.features, self.vocabulary)

    def class_scores(self) -> np.ndarray:
        """The probabilities (C, H, W) float32 of every class at every pixel, computed on each call."""
        scores = np.empty((len(self.classes), *self.labels.shape), np.float32)
        for band, probabilities in self.features.probabilities(self.vocabulary):
            scores[:, band] = probabilities.transpose(2, 0, 1)
        return scores

    def known_evidence(self) -> Evidence:
        """There is none; raises VocabsegError."""
        raise no_masks("masks")


def no_masks(what: str) -> VocabsegError:
    """The error for a question that only a two-stage model answers."""
    return VocabsegError(f"a per-pixel model has no {what}, only labels and scores: use a two-stage model for them")


def whole_image(image_size: Size, output_size: Size) -> Masks:
    """One mask that covers the whole image of (h, w), as the networks see it, and (H, W) pixels."""
    return Masks(np.full((1, 1, 1), CERTAIN, np.float32), image_size, image_size, output_size)


def _unchanged(maps: np.ndarray) -> np.ndarray:
    return maps
