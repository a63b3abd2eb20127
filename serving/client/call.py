"""One call of a client, apart from how it travels: what is sent for an image, and what is made of the answer."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.errors import ImageError, VocabularyError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.result.categories import Categories
from vocabseg.runtime.result.evidence import GivenEvidence
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving import protocol

RESULT = (protocol.LABELS, protocol.SCORES, protocol.CLASS_NAMES)


class VocabularyName:
    """A vocabulary that the server knows by this name."""

    def __init__(self, name: str):
        self.name = name


class Call:
    """Tensors by name, parameters, and the outputs asked for."""

    def __init__(
        self, image: Any, vocabulary: Any | None, wanted: tuple[str, ...], options: Mapping[str, Any] | None = None
    ):
        """Raises ImageError or VocabularyError for what no server could use."""
        self.wanted = wanted
        self.categories: Categories | None = None
        self.parameters: dict[str, Any] = {}
        self.inputs: dict[str, np.ndarray] = {}
        if isinstance(vocabulary, VocabularyName):
            self.parameters["vocabulary"] = vocabulary.name
        elif vocabulary is not None:
            given = Vocabulary.of(vocabulary)
            if any(given.examples):
                raise VocabularyError("a request cannot carry example images: name the classes")
            names = [[name.encode("utf-8", "surrogatepass") for name in given.written]]
            self.inputs[protocol.CLASSES] = np.array(names, object)
            self.categories = given.categories
            for name in ("seen", "templates", "other"):
                value = given.arguments()[name]
                if value is not None and value is not False:
                    self.parameters[name] = json.dumps(value)
        for name, value in (options or {}).items():
            if value is not None:
                self.parameters[name] = json.dumps(list(value)) if name == "things" else value
        self.source = _source(image)
        if isinstance(self.source, bytes):
            self.inputs[protocol.IMAGE] = np.array([[self.source]], object)
        else:
            self.inputs[protocol.PIXELS] = self.source[None]

    def read(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """What the caller gets for the server's answer: JSON, panoptic ids with their segments, or a Result."""
        if protocol.SEGMENTS in arrays:
            return _json(arrays[protocol.SEGMENTS])
        if protocol.PANOPTIC in arrays:
            return np.array(arrays[protocol.PANOPTIC][0]), _json(arrays[protocol.PANOPTIC_SEGMENTS])
        classes = [name.decode() for name in arrays[protocol.CLASS_NAMES][0]]
        evidence = _evidence(arrays) if protocol.SIZES in arrays else None
        # What comes over the wire is read-only; what a segmenter gives is not.
        labels, scores = np.array(arrays[protocol.LABELS][0]), np.array(arrays[protocol.SCORES][0])
        return RemoteResult(labels, scores, classes, self.source, evidence, self.categories)


def segment_call(image: Any, vocabulary: Any, evidence: bool) -> Call:
    return Call(image, vocabulary, RESULT + (protocol.EVIDENCE if evidence else ()))


def panoptic_call(image: Any, vocabulary: Any, things: Any, object_mask_threshold: float, overlap: float) -> Call:
    options = {"things": things, "object_mask_threshold": object_mask_threshold, "overlap_threshold": overlap}
    return Call(image, vocabulary, (protocol.PANOPTIC, protocol.PANOPTIC_SEGMENTS), options)


class RemoteResult(Result):
    """A result whose picture is decoded when it is first used."""

    __slots__ = ("_picture", "_source")

    def __init__(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        classes: list[str],
        source: Any,
        evidence: Any = None,
        categories: Categories | None = None,
    ):
        self._source = source
        self._picture: np.ndarray | None = None
        super().__init__(labels, scores, classes, None, evidence, categories)

    @property
    def image(self) -> np.ndarray | None:  # type: ignore[override]
        if self._picture is None and self._source is not None:
            self._picture = load_image(self._source)
        return self._picture

    @image.setter
    def image(self, picture: np.ndarray | None) -> None:
        self._picture = picture


def _evidence(arrays: Mapping[str, np.ndarray]) -> GivenEvidence:
    """What the server based its answer on: further questions get the same answers here as they would there."""
    from vocabseg.runtime.kernels import load_kernels

    sizes = [int(length) for length in arrays[protocol.SIZES][0]]
    padded, image, output = zip(sizes[::2], sizes[1::2], strict=True)
    masks = Masks(arrays[protocol.MASK_LOGITS][0], padded, image, output)
    probabilities, no_object = arrays[protocol.CLASS_PROBABILITIES][0], arrays[protocol.NO_OBJECT][0]
    return GivenEvidence(masks, probabilities, no_object, load_kernels())


def _json(array: np.ndarray) -> Any:
    return json.loads(bytes(array.ravel()[0]))


def _source(image: Any) -> bytes | np.ndarray:
    """The bytes of an image file, which the server decodes, or else the pixels (H, W, 3)."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise ImageError(f"cannot open {os.fspath(image)!r}: {error.strerror or error}; check the path") from None
    return load_image(image)
