"""Regions whose arrays stay on a GPU until the host asks for them, and their classification there."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from vocabseg.runtime.cuda_arrays import DeviceArray
from vocabseg.runtime.cuda_buffers import Kept
from vocabseg.runtime.cuda_found import Found, Table
from vocabseg.runtime.cuda_stages import Stages
from vocabseg.runtime.cuda_streams import Event
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.regions import UNCOVERED, Regions, Size
from vocabseg.runtime.result import Result
from vocabseg.runtime.text_embedder import TextEmbedder
from vocabseg.runtime.vocabulary import Vocabulary

# Text matrices that stay on the device.
REMEMBERED_VOCABULARIES = 8


class TextMatrices:
    """The text embeddings and seen flags of the vocabularies used last, on the device."""

    def __init__(self, stages: Stages, text: TextEmbedder):
        self._stages, self._text = stages, text
        self._matrices: OrderedDict[tuple[Any, str], DeviceArray] = OrderedDict()

    def get(self, vocabulary: Vocabulary, what: str) -> DeviceArray:
        """ "query" (K + 1, Dq) float32, "region" (K, Dr) float32, or "seen" (K,) uint8."""
        key = (vocabulary, what)
        if key not in self._matrices:
            array = self._stages.device.empty
            host = self._host(vocabulary, what)
            matrix = array(host.shape, host.dtype)
            self._stages.back.upload(matrix, host)
            self._stages.back.synchronize()
            self._matrices[key] = matrix
            while len(self._matrices) > 3 * REMEMBERED_VOCABULARIES:
                self._matrices.popitem(last=False)
        self._matrices.move_to_end(key)
        return self._matrices[key]

    def _host(self, vocabulary: Vocabulary, what: str) -> np.ndarray:
        if what == "seen":
            none = np.zeros(len(vocabulary), np.uint8)
            return none if vocabulary.seen is None else np.ascontiguousarray(vocabulary.seen, np.uint8)
        matrix = self._text.query_matrix(vocabulary) if what == "query" else self._text.region_matrix(vocabulary)
        return np.ascontiguousarray(matrix, np.float32)


@dataclass(eq=False)
class CudaEvidence:
    """What a result needs to answer later questions, fetched from the device when it is asked for."""

    regions: "CudaRegions"
    kept: Kept  # probabilities (M, C) and no_object (M,)
    output_size: Size

    @property
    def padded_size(self) -> Size:
        return self.regions.padded_size

    @property
    def image_size(self) -> Size:
        return self.regions.image_size

    @property
    def kernels(self) -> ModuleType:
        return self.regions.kernels

    @cached_property
    def mask_logits(self) -> np.ndarray:
        masks, voters = self.regions.mask_logits, self.regions.voters
        return masks if len(voters) == len(masks) else masks[voters]

    @property
    def class_probabilities(self) -> np.ndarray:
        return self.kept.on_host("probabilities")[: len(self.regions.voters)]

    @property
    def no_object(self) -> np.ndarray:
        if self.regions.queries is None:
            return np.zeros(len(self.regions.voters), np.float32)
        return self.kept.on_host("no_object")[self.regions.voters]


class CudaRegions(Regions):
    """The regions of one image on a GPU, with the attributes and methods of `Regions`.

    Arrays come to the host when they are first asked for; `classify` works on the device.
    """

    def __init__(self, found: Found, stages: Stages, texts: TextMatrices, text: TextEmbedder):
        given = {
            "image_size": found.image_size,
            "padded_size": found.padded_size,
            "ensemble": stages.bundle.manifest.ensemble,
            "text": text,
            "kept": stages.keep(found),
            "_image": found.image,  # on the host, or on the device
            "_list": found.table,
            "_stages": stages,
            "_texts": texts,
        }
        self.__dict__.update(given)  # the dataclass is frozen

    kept: Kept
    _image: Any
    _list: Table
    _stages: Stages
    _texts: TextMatrices

    @cached_property
    def image(self) -> np.ndarray:  # type: ignore[override]
        return self._image if isinstance(self._image, np.ndarray) else self._image.to_host()

    @cached_property
    def kernels(self) -> ModuleType:  # type: ignore[override]
        """The host's, for questions that are asked later."""
        return load_kernels()

    @cached_property
    def mask_logits(self) -> np.ndarray:  # type: ignore[override]
        return self.kept.on_host("mask_logits").astype(np.float32, copy=False)

    @cached_property
    def query_embeddings(self) -> np.ndarray | None:  # type: ignore[override]
        if self.queries is None:
            return None
        return self.kept.on_host("query_embeddings").astype(np.float32, copy=False)

    @property
    def queries(self) -> str | None:
        """The name under which the query embeddings are kept, or None for masks of one's own."""
        return "query_embeddings" if "query_embeddings" in self.kept else None

    @cached_property
    def _table(self) -> tuple[np.ndarray, ...]:
        with self._stages.lock:
            return Table.parts(self._list.host(), self._list.masks)

    @cached_property
    def areas(self) -> np.ndarray:  # type: ignore[override]
        return self._table[1]

    @cached_property
    def valid(self) -> np.ndarray:  # type: ignore[override]
        return self.areas > 0

    @cached_property
    def boxes(self) -> np.ndarray:  # type: ignore[override]
        return self._table[0][self.valid]

    @cached_property
    def embeddings(self) -> np.ndarray | None:  # type: ignore[override]
        if "embeddings" not in self.kept:
            return None
        features = self.kept.on_host("embeddings").astype(np.float32, copy=False)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    @property
    def region_only(self) -> bool:
        """Whether the image encoder alone decides, so that only the regions' masks vote."""
        return self.queries is None or (self.ensemble.enabled and self.ensemble.weight <= 0)

    @property
    def voters(self) -> np.ndarray:
        """(M,) indices of the masks that vote."""
        return np.flatnonzero(self.valid) if self.region_only else np.arange(self._list.masks)

    def classify(self, vocabulary: Vocabulary | Sequence[str] | str) -> Result:
        """Give every pixel its class out of `vocabulary`; no network runs but the text encoder, for names it never saw.

        Raises VocabularyError for names that cannot be used.
        """
        return self.start_classify(Vocabulary.of(vocabulary)).result()

    def start_classify(self, vocabulary: Vocabulary) -> "Pending":
        """`classify`, without waiting for the device."""
        stages = self._stages
        with stages.lock, stages.device.activate():
            return stages.within_memory(lambda: self._start(vocabulary))

    def _start(self, vocabulary: Vocabulary) -> "Pending":
        stages, kept, n = self._stages, self.kept, self._list.masks
        device, back, download = stages.device, stages.back, stages.download
        height, width = self._image.shape[:2]
        stages.keeper.add(kept)
        probabilities = device.empty((n, len(vocabulary)), np.float32)
        no_object = device.empty((n,), np.float32)
        labels, scores = device.empty((height, width), np.int32), device.empty((height, width), np.float32)
        names = [name for name in ("mask_logits", "query_embeddings", "embeddings", "table") if name in kept]
        arrays = {name: kept.on_device(name) for name in names}
        _, _, order, count = Table.parts(arrays["table"], n)
        with stages.stage("classify", back):
            stages.kernels.classify(
                arrays.get("query_embeddings"),
                None if self.queries is None else self._texts.get(vocabulary, "query"),
                arrays.get("embeddings"),
                self._texts.get(vocabulary, "region") if "embeddings" in arrays else None,
                self._texts.get(vocabulary, "seen"),
                order,
                count,
                self.ensemble.enabled,
                self.ensemble.weight,
                self.ensemble.temperature,
                probabilities,
                no_object,
                back,
            )
        voters, voting = (order, count) if self.region_only else (None, None)
        with stages.stage("compose", back):
            stages.kernels.compose(
                arrays["mask_logits"], probabilities, voters, voting, self.padded_size, self.image_size, labels, scores,
                back,
            )  # fmt: skip
        composed = back.record()
        download.wait(composed)
        wanted = {"labels": labels, "scores": scores}
        if isinstance(self._image, DeviceArray) and "image" not in self.__dict__:
            wanted["image"] = self._image  # results show the image they are of
        host = {}
        for name, array in wanted.items():
            host[name] = device.pinned(array.shape, array.dtype)
            download.download(host[name], array)
        done = download.record()
        stages.flights.hold(done, labels, scores, probabilities, no_object, *host.values(), *arrays.values())
        answers = Kept(download, stages.lock, composed, {"probabilities": probabilities, "no_object": no_object})
        stages.keeper.add(answers)
        return Pending(self, vocabulary, done, host, CudaEvidence(self, answers, (height, width)))


@dataclass(eq=False)
class Pending:
    """A result on its way to the host."""

    regions: CudaRegions
    vocabulary: Vocabulary
    done: Event
    host: dict[str, np.ndarray]  # labels and scores, and the image if it came on the device
    evidence: CudaEvidence

    def result(self) -> Result:
        """Wait for it."""
        try:
            self.done.synchronize()
        except EngineError as error:
            raise EngineError(
                f"{error} (while an image of {self.evidence.output_size} pixels was segmented)"
            ) from error
        host = {name: np.array(array) for name, array in self.host.items()}  # pinned memory goes back to its pool
        labels, scores = host["labels"], host["scores"]
        self.regions.__dict__.setdefault("image", host.get("image", self.regions._image))
        if self.regions.queries is None:
            labels[scores <= UNCOVERED] = -1
        return Result(labels, scores, list(self.vocabulary.names), self.regions.image, self.evidence)
