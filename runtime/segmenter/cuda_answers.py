"""Answers of a GPU: cached text embeddings, arrays that are downloaded on request, and pending results."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Event, Stream
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels.device.arguments import Side
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.result.evidence import Opinions
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.buffers import StoredArrays
from vocabseg.runtime.segmenter.cuda_proposals import FLAGGED, RegionTable
from vocabseg.runtime.segmenter.regions import UNCOVERED, Regions
from vocabseg.runtime.segmenter.stages import check_usable, unusable
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.cuda_stages import CudaStages

# Vocabularies whose text matrices stay on the device.
REMEMBERED_VOCABULARIES = 8
# Arrays of an image that only this package's own code asks for.
HIDDEN = ("table", "flags")


class TextMatrices:
    """The text embeddings and seen flags of the most recently used vocabularies, on the device."""

    def __init__(self, device: Device, stream: Stream):
        self._device, self._stream = device, stream
        self._matrices: OrderedDict[Vocabulary, dict[str, DeviceArray]] = OrderedDict()

    def get(self, text: TextEmbedder, vocabulary: Vocabulary, wanted: Sequence[str]) -> dict[str, DeviceArray]:
        """Those that are wanted of R names in K classes, with the rows of each class if it may have several.

        "query" (R + 1, Dq) float32, "region" (R, Dr) float32, "seen" (K,) uint8, and unless the vocabulary is plain
        "query first" (K + 2,) and "region first" (K + 1,) int32.
        """
        if not vocabulary.plain:
            wanted = [*wanted, *(f"{side} first" for side in ("query", "region") if side in wanted)]
        known = self._matrices.setdefault(vocabulary, {})
        self._matrices.move_to_end(vocabulary)
        for what in wanted:
            if what not in known:
                host = _text_matrix(text, vocabulary, what)
                matrix = self._device.empty(host.shape, host.dtype)
                self._stream.upload(matrix, host)
                self._stream.synchronize()  # of matrices that are forgotten now, too
                known[what] = matrix
        while len(self._matrices) > REMEMBERED_VOCABULARIES:
            self._matrices.popitem(last=False)
        return {what: known[what] for what in wanted}


def _text_matrix(text: TextEmbedder, vocabulary: Vocabulary, what: str) -> np.ndarray:
    if what == "seen":
        none = np.zeros(len(vocabulary), np.uint8)
        return none if vocabulary.seen is None else np.ascontiguousarray(vocabulary.seen, np.uint8)
    if what.endswith(" first"):
        first = text.first_names(vocabulary, "query" if what == "query first" else "region")
        assert first is not None
        return first
    matrix = text.query_matrix(vocabulary) if what == "query" else text.region_matrix(vocabulary)
    return np.ascontiguousarray(matrix, np.float32)


class Answers(NamedTuple):
    """Class probabilities (N, K) float32, a row per voter, and "no object" probabilities (N,), on the device."""

    probabilities: DeviceArray
    no_object: DeviceArray


class DeviceArrays(Mapping[str, np.ndarray]):
    """What remains of an image on the device (see `Stages.finish`); accessing an array waits for it."""

    def __init__(self, image: Any, table: RegionTable, stored: StoredArrays, lock: "threading.RLock"):
        self.table, self.stored = table, stored
        self._image, self._lock = image, lock

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "image":
            if isinstance(self._image, DeviceArray):
                self._image = self._image.to_host()
            return self._image  # type: ignore[no-any-return]
        if name in ("boxes", "areas"):
            with self._lock:
                return self.table.on_host()[("boxes", "areas").index(name)]
        if name == "encoded_as" and self.table.budgeted:
            with self._lock:
                return self.table.encoded_as()
        if name in HIDDEN or name not in self.stored:
            raise KeyError(name)
        array = self.stored.on_host(name)
        graph, output = FLAGGED[name]
        check_usable(graph, **{output: array})
        if name != "embeddings":
            return array
        features = array.astype(np.float32, copy=False)
        return features / np.linalg.norm(features, axis=1, keepdims=True)  # type: ignore[no-any-return]

    def __contains__(self, name: object) -> bool:
        known = ("image", "boxes", "areas", *(("encoded_as",) if self.table.budgeted else ()))
        return name in known or (name not in HIDDEN and name in self.stored)

    def __iter__(self) -> Iterator[str]:
        names = ("image", "mask_logits", "query_embeddings", "boxes", "areas", "encoded_as", "embeddings")
        return (name for name in names if name in self)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def picture_on_device(self) -> dict[str, DeviceArray]:
        """The image, if it was given on the device and is still only there: results include their image."""
        return {"image": self._image} if isinstance(self._image, DeviceArray) else {}

    def keep_picture(self, image: np.ndarray) -> None:
        """Store the image, which is now on the host."""
        self._image = image


@dataclass(eq=False)
class DeviceEvidence:
    """What a result needs to answer later queries, fetched from the device on request."""

    regions: Regions
    vocabulary: Vocabulary
    stored: StoredArrays  # probabilities (M, K) and no_object (N,)

    @cached_property
    def masks(self) -> Masks:
        masks, voters = self.regions.masks, self.regions.voters
        return masks if len(voters) == len(masks) else masks[voters]

    @property
    def class_probabilities(self) -> np.ndarray:
        return self.stored.on_host("probabilities")[: len(self.regions.voters)]

    @property
    def no_object(self) -> np.ndarray:
        if self.regions.query_embeddings is None:
            return np.zeros(len(self.regions.voters), np.float32)
        return self.stored.on_host("no_object")[self.regions.voters]

    @property
    def crops(self) -> int:
        return self.regions.crops

    @cached_property
    def opinions(self) -> Opinions:
        return self.regions.opinions(self.vocabulary)

    @property
    def kernels(self) -> ModuleType:
        """The host's, for later queries."""
        return load_kernels()


class Voting:
    """Turns what the networks found in an image, and a vocabulary, into class probabilities and labels."""

    def __init__(self, stages: "CudaStages"):
        self._stages = stages
        self._texts = TextMatrices(stages.device, stages.back)

    def classify(self, regions: Regions, vocabulary: Vocabulary) -> Answers:
        """Enqueue what gives the class probabilities of all masks."""
        stages, arrays = self._stages, _arrays(regions)
        stages.store.add(arrays.stored)
        on_device, table = arrays.stored.on_device, arrays.table
        n = table.masks
        queries = on_device("query_embeddings") if "query_embeddings" in arrays.stored else None
        embeddings = on_device("embeddings") if "embeddings" in arrays.stored else None
        probabilities, no_object = stages.device.together(((n, len(vocabulary)), np.float32), ((n,), np.float32))
        wanted = [name for name, of in (("query", queries), ("region", embeddings)) if of is not None]
        texts = self._texts.get(regions.text, vocabulary, (*wanted, "seen"))
        ensemble, listed, seen, back = regions.ensemble, on_device("table"), texts["seen"], stages.back

        def vote() -> None:
            query = None if queries is None else Side(queries, texts["query"], texts.get("query first"))
            region = None if embeddings is None else Side(embeddings, texts["region"], texts.get("region first"))
            order, count = table.of(listed)[2:]
            stages.kernels.classify(query, region, seen, order, count, ensemble, probabilities, no_object, back)

        with stages.stage("classify", back):
            used = (queries, embeddings, listed, probabilities, no_object, *texts.values())
            stages.recordings.run("classify", back, used, ensemble, vote)
        return Answers(probabilities, no_object)

    def compose(self, regions: Regions, answers: Answers, vocabulary: Vocabulary) -> "PendingResult":
        """Enqueue what gives every pixel its label, and the copies to the host."""
        stages, arrays = self._stages, _arrays(regions)
        device, back, download, on_device = stages.device, stages.back, stages.download, arrays.stored.on_device
        masks = Masks(on_device("mask_logits"), regions.padded_size, regions.image_size, regions.output_size)
        listed = on_device("table") if regions.region_only else None
        size, flags = regions.output_size, on_device("flags")
        found = device.together((size, np.int32), (size, np.float32), (flags.shape, np.int32))
        labels, scores, flags_then = found

        def compose() -> None:
            order, count = (None, None) if listed is None else arrays.table.of(listed)[2:]
            stages.kernels.compose(masks, answers.probabilities, order, count, labels, scores, back)
            back.copy(flags_then, flags)

        with stages.stage("compose", back):
            used = (masks.logits, answers.probabilities, listed, labels, flags)
            stages.recordings.run("compose", back, used, (masks.padded_size, masks.image_size), compose)
        composed = back.record()
        download.wait(composed)
        host = dict(zip(("labels", "scores", "flags"), download.downloaded(found), strict=True))
        for name, array in arrays.picture_on_device().items():
            host[name] = device.pinned(array.shape, array.dtype)
            download.download(host[name], array)
        done = download.record()
        stages.in_flight.hold(
            done, *found, *answers, *host.values(), *arrays.picture_on_device().values(), *arrays.stored.held()
        )
        kept = {"probabilities": answers.probabilities, "no_object": answers.no_object}
        stored = StoredArrays(download, stages.lock, composed, kept)
        stages.store.add(stored)
        return PendingResult(regions, arrays, vocabulary, done, host, stored)


def _arrays(regions: Regions) -> DeviceArrays:
    assert isinstance(regions.arrays, DeviceArrays)
    return regions.arrays


@dataclass(eq=False)
class PendingResult:
    """A result that is being copied to the host."""

    regions: Regions
    arrays: DeviceArrays
    vocabulary: Vocabulary
    done: Event
    host: dict[str, np.ndarray]  # labels, scores and flags, and the image if it was given on the device
    stored: StoredArrays

    def result(self) -> Result:
        """Wait for the result; raises EngineError if a network's output holds infinities or NaN."""
        try:
            self.done.synchronize()
        except EngineError as error:
            size = self.regions.output_size
            raise EngineError(f"{error} (while an image of {size} pixels was segmented)") from error
        host = {name: np.array(array) for name, array in self.host.items()}  # pinned memory returns to its pool
        for flag, (graph, output) in zip(host["flags"], FLAGGED.values(), strict=True):
            if flag:
                raise unusable(graph, output)
        labels, scores = host["labels"], host["scores"]
        if "image" in host:
            self.arrays.keep_picture(host["image"])
        if "query_embeddings" not in self.arrays:
            labels[scores <= UNCOVERED] = -1
        names, categories = self.vocabulary.names, self.vocabulary.categories
        evidence = DeviceEvidence(self.regions, self.vocabulary, self.stored)
        return Result(labels, scores, names, self.regions.image, evidence, categories)
