"""Answers of a GPU: cached text embeddings, arrays that are downloaded on request, and pending results."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Event, Stream
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.result.evidence import Opinions
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.buffers import StoredArrays
from vocabseg.runtime.segmenter.cuda_proposals import FLAGGED, RegionTable
from vocabseg.runtime.segmenter.regions import UNCOVERED, Regions
from vocabseg.runtime.segmenter.stages import check_usable, unusable
from vocabseg.runtime.text.embedder import TextEmbedder
from vocabseg.runtime.text.vocabulary import Vocabulary

# Vocabularies whose text matrices stay on the device.
REMEMBERED_VOCABULARIES = 8
# Arrays of an image that only this package's own code asks for.
HIDDEN = ("table", "flags")


class TextMatrices:
    """The text embeddings and seen flags of the most recently used vocabularies, on the device."""

    def __init__(self, device: Device, stream: Stream):
        self._device, self._stream = device, stream
        self._matrices: OrderedDict[tuple[Vocabulary, str], DeviceArray] = OrderedDict()

    def get(self, text: TextEmbedder, vocabulary: Vocabulary, what: str) -> DeviceArray:
        """ "query" (K + 1, Dq) float32, "region" (K, Dr) float32, or "seen" (K,) uint8."""
        key = (vocabulary, what)
        if key not in self._matrices:
            host = _text_matrix(text, vocabulary, what)
            matrix = self._device.empty(host.shape, host.dtype)
            self._stream.upload(matrix, host)
            self._stream.synchronize()
            self._matrices[key] = matrix
            while len(self._matrices) > 3 * REMEMBERED_VOCABULARIES:
                self._matrices.popitem(last=False)
        self._matrices.move_to_end(key)
        return self._matrices[key]


def _text_matrix(text: TextEmbedder, vocabulary: Vocabulary, what: str) -> np.ndarray:
    if what == "seen":
        none = np.zeros(len(vocabulary), np.uint8)
        return none if vocabulary.seen is None else np.ascontiguousarray(vocabulary.seen, np.uint8)
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
        return name in ("image", "boxes", "areas") or (name not in HIDDEN and name in self.stored)

    def __iter__(self) -> Iterator[str]:
        names = ("image", "mask_logits", "query_embeddings", "boxes", "areas", "embeddings")
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

    @cached_property
    def opinions(self) -> Opinions:
        return self.regions.opinions(self.vocabulary)

    @property
    def kernels(self) -> ModuleType:
        """The host's, for later queries."""
        return load_kernels()


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
        evidence = DeviceEvidence(self.regions, self.vocabulary, self.stored)
        return Result(labels, scores, self.vocabulary.names, self.regions.image, evidence)
