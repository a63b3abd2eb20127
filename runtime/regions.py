"""Regions: what the networks found in one image, ready to be asked with any vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from vocabseg.runtime.bundle import EnsembleSpec
from vocabseg.runtime.classify import class_probabilities, query_distribution
from vocabseg.runtime.result import Result
from vocabseg.runtime.text_embedder import TextEmbedder
from vocabseg.runtime.vocabulary import Vocabulary

Size = tuple[int, int]

# Where masks of one's own leave a pixel uncovered, every class scores sigmoid(-40) or so; such a pixel has no label.
UNCOVERED = 1e-6


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a result needs to answer later questions: M masks, their class probabilities, and how to resample them."""

    mask_logits: np.ndarray  # (M, h, w) float32
    class_probabilities: np.ndarray  # (M, C) float32
    no_object: np.ndarray  # (M,) float32, the probability that a query is no object
    padded_size: Size
    image_size: Size
    output_size: Size
    kernels: ModuleType


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of one image. N masks, of which V are not empty after thresholding.

    Attributes:
        image: (H, W, 3) uint8 RGB, the image as it was given.
        image_size: (h, w) of the image as the networks saw it; `boxes` are in its pixels.
        padded_size: (Hp, Wp), the proposal network's input size.
        mask_logits: (N, hm, wm) float32, covering `padded_size`.
        query_embeddings: (N, Dq) float32, not normalised; None for masks of one's own.
        boxes: (V, 4) int32, tight [x1, y1, x2, y2) around each valid mask.
        valid: (N,) bool, whether a mask has any pixel over the threshold.
        areas: (N,) int32, pixels over the threshold.
        embeddings: (V, Dr) float32 of unit length; None where the bundle's ensemble is off and no crop was encoded.
    """

    image: np.ndarray
    image_size: Size
    padded_size: Size
    mask_logits: np.ndarray
    query_embeddings: np.ndarray | None
    boxes: np.ndarray
    valid: np.ndarray
    areas: np.ndarray
    embeddings: np.ndarray | None
    ensemble: EnsembleSpec
    text: TextEmbedder
    kernels: ModuleType

    @property
    def image_boxes(self) -> np.ndarray:
        """(V, 4) float32: the boxes in pixels of the image as it was given."""
        scale_x = self.image.shape[1] / self.image_size[1]
        scale_y = self.image.shape[0] / self.image_size[0]
        return self.boxes.astype(np.float32) * np.array([scale_x, scale_y, scale_x, scale_y], np.float32)

    def classify(self, vocabulary: Vocabulary | Sequence[str] | str) -> Result:
        """Give every pixel its class out of `vocabulary`; no network runs but the text encoder, for names it never saw.

        Raises VocabularyError for names that cannot be used.
        """
        vocabulary = Vocabulary.of(vocabulary)
        probabilities, indices, no_object = self.probabilities(vocabulary)
        output_size = (self.image.shape[0], self.image.shape[1])
        # The usual case takes every mask in order: no copy then.
        masks = self.mask_logits if len(indices) == len(self.mask_logits) else self.mask_logits[indices]
        evidence = Evidence(
            masks, probabilities, no_object, self.padded_size, self.image_size, output_size, self.kernels
        )
        labels, scores = self.kernels.compose(masks, probabilities, self.padded_size, self.image_size, output_size)
        if self.query_embeddings is None:
            labels[scores <= UNCOVERED] = -1
        return Result(labels, scores, list(vocabulary.names), self.image, evidence)

    def probabilities(self, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Class probabilities (M, C) float32 of the masks that vote, their indices (M,), and no-object's (M,)."""
        region_only = self.query_embeddings is None
        query_text = None if region_only else self.text.query_matrix(vocabulary)
        region_text = None if self.embeddings is None else self.text.region_matrix(vocabulary)
        probabilities, indices = class_probabilities(
            self.query_embeddings,
            query_text,
            self.valid,
            self.embeddings,
            region_text,
            vocabulary.seen,
            self.ensemble.enabled,
            self.ensemble.weight,
            self.ensemble.temperature,
        )
        if self.query_embeddings is None or query_text is None:
            return probabilities, indices, np.zeros(len(indices), np.float32)
        no_object = query_distribution(self.query_embeddings, query_text, self.ensemble.temperature)[:, -1]
        return probabilities, indices, no_object[indices]
