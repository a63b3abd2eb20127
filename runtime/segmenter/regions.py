"""Regions: what the networks found in one image, ready to be classified with any vocabulary."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from vocabseg.runtime.bundle.sections import EnsembleSection
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.result.evidence import Opinions
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.classify import powers, query_distribution, region_distribution
from vocabseg.runtime.segmenter.stages import Pending, Stages
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary

# At a pixel that no user-supplied mask covers, every class scores about sigmoid(-40); such a pixel has no label.
UNCOVERED = 1e-6


class Regions:
    """The regions of one image. N masks, of which V are not empty after thresholding.

    Arrays on a GPU are copied to the host on first access; `classify` works where they are.

    Attributes:
        image_size: (h, w) of the image as the networks saw it; `boxes` are in its pixels.
        padded_size: (Hp, Wp), the proposal network's input size.
        output_size: (H, W) of the original image.
    """

    def __init__(
        self,
        sizes: Masks,
        arrays: Mapping[str, np.ndarray],
        stages: Stages,
        ensemble: EnsembleSection,
        text: TextEmbedder,
    ):
        """Only the sizes of `sizes` are used; `arrays` is what `stages.finish` returned."""
        self.padded_size, self.image_size, self.output_size = sizes.padded_size, sizes.image_size, sizes.output_size
        self.arrays, self.ensemble, self.text = arrays, ensemble, text
        self._stages = stages

    def __repr__(self) -> str:
        height, width = self.output_size
        return f"Regions({int(self.valid.sum())} of {len(self.valid)} masks, {height} x {width} pixels)"

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, the original image."""
        return self.arrays["image"]

    @cached_property
    def mask_logits(self) -> np.ndarray:
        """(N, hm, wm) float32, covering `padded_size`."""
        return self.arrays["mask_logits"].astype(np.float32, copy=False)

    @cached_property
    def query_embeddings(self) -> np.ndarray | None:
        """(N, Dq) float32, not normalised; None for user-supplied masks."""
        return self._float32("query_embeddings")

    @property
    def boxes(self) -> np.ndarray:
        """(V, 4) int32, tight [x1, y1, x2, y2) around each valid mask."""
        return self.arrays["boxes"]

    @property
    def areas(self) -> np.ndarray:
        """(N,) int32, pixels above the threshold; -1 for a mask that the region budget dropped."""
        return self.arrays["areas"]

    @cached_property
    def valid(self) -> np.ndarray:
        """(N,) bool, whether a mask is a region: it has any pixel above the threshold, and was not dropped."""
        return self.areas > 0

    @cached_property
    def embeddings(self) -> np.ndarray | None:
        """(V, Dr) float32 of unit length; None if the bundle's ensemble is off and no crop was encoded.

        Rows of regions that share a crop are equal, see `encoded_as`.
        """
        return self._float32("embeddings")

    @cached_property
    def encoded_as(self) -> np.ndarray:
        """(V,) int64: the region whose crop stands for each; its own number, unless a region budget lets it share."""
        own = np.arange(len(self.boxes))
        return self.arrays["encoded_as"].astype(np.int64) if "encoded_as" in self.arrays else own

    @property
    def crops(self) -> int:
        """How many crops the image encoder was given; 0 if the bundle's ensemble is off."""
        # np.unique would import numpy.ma, for every first image.
        return int(np.count_nonzero(np.bincount(self.encoded_as))) if "embeddings" in self.arrays else 0

    @property
    def image_boxes(self) -> np.ndarray:
        """(V, 4) float32: the boxes in pixels of the original image."""
        scale_y, scale_x = (given / seen for given, seen in zip(self.output_size, self.image_size, strict=True))
        return self.boxes.astype(np.float32) * np.array([scale_x, scale_y, scale_x, scale_y], np.float32)

    @property
    def masks(self) -> Masks:
        """The masks on the host, with their sizes."""
        return Masks(self.mask_logits, self.padded_size, self.image_size, self.output_size)

    @property
    def region_only(self) -> bool:
        """Whether the image encoder alone decides, so that only the regions' masks vote."""
        no_queries = "query_embeddings" not in self.arrays
        return no_queries or (self.ensemble.enabled and self.ensemble.weight <= 0)

    @property
    def voters(self) -> np.ndarray:
        """(M,) indices of the masks that vote."""
        return np.flatnonzero(self.valid) if self.region_only else np.arange(len(self.valid))

    def classify(self, vocabulary: Vocabulary | Sequence[str] | str) -> Result:
        """Label every pixel with a class of `vocabulary`; only the text encoder runs, for names it has not seen yet.

        Raises VocabularyError for names that cannot be used.
        """
        return self.start_classify(Vocabulary.of(vocabulary)).result()

    def start_classify(self, vocabulary: Vocabulary) -> Pending:
        """`classify`, without waiting for a GPU."""
        with self._stages.turn():
            votes = self._stages.classify(self, vocabulary)
            return self._stages.compose(self, votes, vocabulary)

    def probabilities(self, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Class probabilities (M, C) float32 of the masks that vote, their indices (M,), and "no object" (M,)."""
        evidence = self.classify(vocabulary).evidence
        assert evidence is not None
        return evidence.class_probabilities, self.voters, evidence.no_object

    def opinions(self, vocabulary: Vocabulary) -> Opinions:
        """What the class probabilities of the masks that vote are made of; computed on the host."""
        queries, embeddings, voters = self.query_embeddings, self.embeddings, self.voters
        temperature = self.ensemble.temperature
        seen = np.zeros(len(vocabulary), bool) if vocabulary.seen is None else vocabulary.seen
        query = clip = None
        with self._stages.turn():  # names that were forgotten meanwhile are encoded again
            if queries is not None:
                query_text = self.text.query_matrix(vocabulary)
                first = self.text.first_names(vocabulary, "query")
                query = query_distribution(queries, query_text, temperature, first)[voters, :-1]
            if embeddings is not None:
                region_text = self.text.region_matrix(vocabulary)
                clip = np.full((len(self.valid), len(vocabulary)), np.nan, np.float32)
                first = self.text.first_names(vocabulary, "region")
                clip[self.valid] = region_distribution(embeddings, region_text, len(embeddings), temperature, first)
                clip = clip[voters]
        if self.region_only or not self.ensemble.enabled:
            query_power = np.full(len(vocabulary), 0 if self.region_only else 1, np.float32)
        else:
            flags = seen if self.ensemble.seen_rule else np.zeros(len(vocabulary), bool)
            query_power, _ = powers(flags, self.ensemble.weight)
        boxes = np.zeros((len(self.valid), 4), np.float32)
        boxes[self.valid] = self.image_boxes
        scale = np.prod(self.output_size, dtype=float) / np.prod(self.image_size, dtype=float)
        areas = np.where(self.areas < 0, -1, np.rint(self.areas * scale)).astype(np.int64)
        crops = np.full(len(self.valid), -1)
        if embeddings is not None:
            crops[self.valid] = np.flatnonzero(self.valid)[self.encoded_as]
        return Opinions(voters, query, clip, query_power, seen, boxes[voters], areas[voters], crops[voters])

    def _float32(self, name: str) -> np.ndarray | None:
        return self.arrays[name].astype(np.float32, copy=False) if name in self.arrays else None
