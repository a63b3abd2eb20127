"""The pipeline's stages on the host: NumPy arrays, host kernels, and CPU engines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from vocabseg.runtime.bundle.manifest import QUERIES
from vocabseg.runtime.bundle.sections import EnsembleSection, InputSection, RegionSpec
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels.budget import choose_leaders, mask_confidences
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.kernels.geometry import expand_boxes
from vocabseg.runtime.masks import Masks, Size
from vocabseg.runtime.progress import Progress, silent
from vocabseg.runtime.result.evidence import GivenEvidence
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.classify import class_probabilities, query_distribution
from vocabseg.runtime.segmenter.regions import UNCOVERED, Regions
from vocabseg.runtime.segmenter.stages import Observed, check_usable, input_sizes, unusable
from vocabseg.runtime.text.vocabulary import Vocabulary

# Regions encoded at a time: 16 crops of 224 x 224 keep the encoder's activations near 100 MB (ViT-B/16) and its matrix
# products large enough to run at full speed.
CROPS_PER_CHUNK = 16

# Runs one of the networks: "proposal" or "image_encoder", its inputs by name -> its outputs by name.
Run = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class HostImage:
    """An image ready for the proposal network: resized (h, w, 3) uint8, network_input (1, 3, Hp, Wp) float32."""

    image: np.ndarray
    resized: np.ndarray
    network_input: np.ndarray


@dataclass(eq=False)
class HostProposals:
    """An image's proposals; boxes (V, 4), areas (N,) and embeddings (V, D) are set by their stages.

    known: (V, D) float32, embeddings that `encode` need not compute; rows of NaN are those that it has to.
    Under a region budget also encoded_as (V,), see `Regions.encoded_as`, and areas are -1 where a mask is dropped.
    """

    image: np.ndarray
    resized: np.ndarray
    masks: Masks
    query_embeddings: np.ndarray | None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int32))
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    encoded_as: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    known: np.ndarray | None = None

    @property
    def has_queries(self) -> bool:
        return self.query_embeddings is not None


class HostStages(Observed):
    """`Stages` on the host; without `ensemble`, only up to the crops."""

    def __init__(
        self,
        spec: InputSection,
        region: RegionSpec,
        run: Run,
        kernels: ModuleType,
        ensemble: EnsembleSection | None = None,
        width: int = 0,
        objects: Callable[[], np.ndarray] | None = None,
    ):
        """`run` runs the networks; `width` is that of the image encoder's embeddings.

        `objects` gives `TextEmbedder.object_matrix`, without which no region budget is kept.
        """
        self.spec, self.region, self.ensemble = spec, region, ensemble
        self.kernels = kernels
        self._run = run
        self._width = width
        self._objects = objects
        self._cropping = cropping(region)

    def turn(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def load(self, image: Any) -> np.ndarray:
        return load_image(image)

    def prepare(self, image: np.ndarray) -> HostImage:
        sizes = input_sizes(self.spec, image.shape[0], image.shape[1])
        with self.stage("resize_normalize"):
            network_input, resized = self.kernels.resize_normalize(image, *sizes, self.spec.mean, self.spec.std)
        self.note("resize_normalize", network_input=network_input, resized=resized)
        return HostImage(image, resized, network_input)

    def propose(self, prepared: HostImage) -> HostProposals:
        with self.stage("proposal"):
            outputs = self._run("proposal", {"image": prepared.network_input})
        self.note("proposal", **outputs)
        check_usable("proposal network", **outputs)
        sizes = [_size(prepared.network_input[0, 0]), _size(prepared.resized), _size(prepared.image)]
        masks, queries = Masks(outputs["mask_logits"][0], *sizes), outputs.get(QUERIES)
        return HostProposals(prepared.image, prepared.resized, masks, None if queries is None else queries[0])

    def given(
        self, image: np.ndarray, resized: np.ndarray, masks: Masks, query_embeddings: np.ndarray | None
    ) -> HostProposals:
        return HostProposals(image, resized, masks, query_embeddings)

    def describe(self, proposals: HostProposals) -> None:
        with self.stage("region_boxes"):
            boxes, areas = self.kernels.region_boxes(proposals.masks, self.region.mask_threshold)
            if self.region.budgeted and self._objects is not None:
                proposals.encoded_as = self._budgeted(proposals, boxes, areas)
        proposals.boxes, proposals.areas = boxes[areas > 0], areas

    def _budgeted(self, proposals: HostProposals, boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
        """`Regions.encoded_as` under the region budget; the areas of dropped masks become -1."""
        region, masks = self.region, proposals.masks
        bits = None if region.share_iou is None else self.kernels.region_bits(masks, region.mask_threshold)
        limits = region.share_iou, region.min_objectness, region.max_regions
        leaders = choose_leaders(boxes, areas, self._objectness(proposals), bits, *limits)
        areas[(areas > 0) & (leaders < 0)] = -1
        place = np.cumsum(areas > 0) - 1
        return place[leaders[areas > 0]]

    def _objectness(self, proposals: HostProposals) -> np.ndarray:
        """(N,) float32: one minus the probability of "no object", or without queries the masks' own confidence."""
        if proposals.query_embeddings is None:
            return mask_confidences(proposals.masks.logits, self.region.mask_threshold)
        assert self._objects is not None
        assert self.ensemble is not None
        found = query_distribution(proposals.query_embeddings, self._objects(), self.ensemble.temperature)
        return np.float32(1) - found[:, -1]

    def encode(self, proposals: HostProposals, progress: Progress = silent) -> None:
        """Embed regions, in chunks to bound memory: those whose crops stand for themselves and that are not known."""
        known, source = proposals.known, proposals.encoded_as
        wanted = None
        if known is not None or source is not None:
            source = np.arange(len(proposals.boxes)) if source is None else source
            wanted = np.unique(source)
            if known is not None:
                wanted = wanted[np.isnan(known[wanted, 0])]
        count = len(proposals.boxes if wanted is None else wanted)
        chunks: list[np.ndarray] = []
        for inputs, part in self.encoder_inputs(proposals, wanted):
            progress("encoding regions", part.start, count)
            with self.stage("image_encoder"):
                chunks.append(self._run("image_encoder", inputs)["image_features"])
        progress("encoding regions", count, count)
        if chunks:
            features = np.concatenate(chunks).astype(np.float32, copy=False)
            lengths = np.linalg.norm(features, axis=1, keepdims=True)
            check_usable("image encoder", image_features=lengths)
            if not lengths.all():
                raise unusable("image encoder", "image_features")
            features /= lengths
        else:
            features = np.zeros((0, self._width), np.float32)
        if wanted is not None:
            rows = np.empty((len(proposals.boxes), self._width), np.float32) if known is None else known.copy()
            rows[wanted] = features
            features = rows[source]
        proposals.embeddings = features

    def encoder_inputs(
        self, proposals: HostProposals, regions: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[tuple[dict[str, np.ndarray], slice]]:
        """The image encoder's inputs for V regions (or those numbered `regions`), in chunks.

        Yields crops (v, 3, S, S) float32, with mask prompts also patch_mask (v, G, G) float32 of 0 and 1, by the names
        of the inputs, and the slice of the regions they belong to.
        """
        masks, grid = proposals.masks, self.region.patch_grid
        numbers = np.arange(len(proposals.boxes)) if regions is None else np.asarray(regions, np.int64)
        boxes = expand_boxes(proposals.boxes[numbers], self.region.expand_ratio, masks.image_size)
        indices = np.flatnonzero(proposals.areas > 0)[numbers].astype(np.int32)
        for start in range(0, len(numbers), CROPS_PER_CHUNK):
            part = slice(start, start + CROPS_PER_CHUNK)
            with self.stage("crop_regions"):
                cut = boxes[part], indices[part], self._cropping
                inputs = {"crops": self.kernels.crop_regions(proposals.resized, masks, *cut)}
                if grid:
                    inputs["patch_mask"] = self.kernels.patch_masks(masks, *cut, grid)
            self.note("crop_regions", **inputs)
            yield inputs, part

    def encoder_inputs_of(self, proposals: HostProposals, regions: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The image encoder's inputs for some regions, in one piece; numbers beyond the last region are left out."""
        numbers = [number for number in regions if number < len(proposals.boxes)]
        shapes = encoder_input_shapes(self.region, 0)
        chunks = [{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}]
        chunks += [inputs for inputs, _ in self.encoder_inputs(proposals, numbers)]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in shapes}

    def finish(self, proposals: HostProposals) -> dict[str, np.ndarray]:
        found = {
            "image": proposals.image,
            "mask_logits": proposals.masks.logits,
            "query_embeddings": proposals.query_embeddings,
            "boxes": proposals.boxes,
            "areas": proposals.areas,
            "encoded_as": proposals.encoded_as,
            "embeddings": proposals.embeddings,
        }
        return {name: array for name, array in found.items() if array is not None}

    def classify(self, regions: Regions, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities (M, K) float32 and "no object" probabilities (M,) of the masks that vote."""
        assert self.ensemble is not None
        query = regions.query_embeddings
        query_text = None if query is None else regions.text.query_matrix(vocabulary)
        region_text = None if regions.embeddings is None else regions.text.region_matrix(vocabulary)
        query_first, region_first = (regions.text.first_names(vocabulary, side) for side in ("query", "region"))
        with self.stage("classify"):
            probabilities = class_probabilities(
                query, query_text, regions.valid, regions.embeddings, region_text, vocabulary.seen, self.ensemble,
                query_first, region_first,
            )  # fmt: skip
            if query is None or query_text is None:
                return probabilities, np.zeros(len(probabilities), np.float32)
            no_object = query_distribution(query, query_text, self.ensemble.temperature, query_first)[:, -1]
        return probabilities, no_object[regions.voters]

    def compose(self, regions: Regions, votes: tuple[np.ndarray, np.ndarray], vocabulary: Vocabulary) -> "HostResult":
        probabilities, no_object = votes
        # Usually every mask votes, in order: no copy is needed.
        masks = regions.masks if len(probabilities) == len(regions.masks) else regions.masks[regions.voters]
        opinions = lambda: regions.opinions(vocabulary)  # noqa: E731
        evidence = GivenEvidence(masks, probabilities, no_object, self.kernels, opinions, regions.crops)
        with self.stage("compose"):
            labels, scores = self.kernels.compose(masks, probabilities)
        if regions.query_embeddings is None:
            labels[scores <= UNCOVERED] = -1
        return HostResult(Result(labels, scores, vocabulary.names, regions.image, evidence, vocabulary.categories))


@dataclass(frozen=True)
class HostResult:
    """A result that is already complete."""

    found: Result

    def result(self) -> Result:
        return self.found


def cropping(region: RegionSpec) -> Cropping:
    """How the kernels cut regions, from a bundle's settings."""
    mean = np.array(region.mean) * 255
    fill = mean if region.mask_fill == "mean" else np.zeros(3)
    return Cropping(region.mask_threshold, region.matting, fill, mean, np.array(region.std) * 255, region.crop_size)


def encoder_input_shapes(region: RegionSpec, count: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the image encoder's inputs for `count` regions, by name."""
    side, grid = region.crop_size, region.patch_grid
    return {"crops": (count, 3, side, side)} | ({"patch_mask": (count, grid, grid)} if grid else {})


def _size(array: np.ndarray) -> Size:
    return array.shape[0], array.shape[1]
