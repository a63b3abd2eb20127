"""One call of a client, apart from how it travels: what is sent for an image, and the result of what comes back."""

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.errors import ImageError, ServerError, VocabularyError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.result.result import GivenEvidence, Result
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving import protocol

# Seconds before the second try; the time doubles at each further one.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
# What a server says when it is not its request's fault, and the same request may go well a moment later.
PASSING = (
    "exceeds maximum queue size",
    "unavailable",
    "not ready",
    "stub process",
    "unexpected failure",
    "server is stopping",
    "connection",
    "socket closed",
    "cancelled",
)


class Call:
    """What is sent: tensors by name, parameters, and the outputs asked for."""

    def __init__(
        self,
        image: Any,
        vocabulary: "Vocabulary | Any | None",
        wanted: tuple[str, ...],
        options: Mapping[str, Any] | None = None,
    ):
        """Raises ImageError or VocabularyError for what no server could use."""
        self.wanted = wanted
        self.parameters: dict[str, Any] = {}
        self.inputs: dict[str, np.ndarray] = {}
        given = None if vocabulary is None or isinstance(vocabulary, Named) else Vocabulary.of(vocabulary)
        if isinstance(vocabulary, Named):
            self.parameters["vocabulary"] = vocabulary.name
        elif given is not None:
            names = [[name.encode("utf-8", "surrogatepass") for name in given.names]]
            self.inputs[protocol.CLASSES] = np.array(names, object)
            if given.seen is not None:
                self.parameters["seen"] = json.dumps([bool(flag) for flag in given.seen])
            if given.templates is not None:
                self.parameters["templates"] = json.dumps(list(given.templates))
        for name, value in (options or {}).items():
            if value is not None:
                self.parameters[name] = json.dumps(list(value)) if name == "things" else value
        self.source = _source(image)
        if isinstance(self.source, bytes):
            self.inputs[protocol.IMAGE] = np.array([[self.source]], object)
        else:
            self.inputs[protocol.PIXELS] = self.source[None]


class Named:
    """A vocabulary that the server knows by this name."""

    def __init__(self, name: str):
        self.name = name


class RemoteResult(Result):
    """A result whose picture is decoded when it is first looked at."""

    __slots__ = ("_picture", "_source")

    def __init__(self, labels: np.ndarray, scores: np.ndarray, classes: list[str], source: Any, evidence: Any = None):
        self._source = source
        self._picture: np.ndarray | None = None
        super().__init__(labels, scores, classes, None, evidence)

    @property
    def image(self) -> np.ndarray | None:  # type: ignore[override]
        if self._picture is None and self._source is not None:
            self._picture = load_image(self._source)
        return self._picture

    @image.setter
    def image(self, picture: np.ndarray | None) -> None:
        self._picture = picture


def evidence_of(arrays: Mapping[str, np.ndarray]) -> GivenEvidence:
    """What the server based its answer on, so that further questions are answered here as they would be there."""
    from vocabseg.runtime.kernels import load_kernels

    sizes = [int(length) for length in arrays[protocol.SIZES][0]]
    padded, image, output = zip(sizes[::2], sizes[1::2], strict=True)
    masks = Masks(arrays[protocol.MASK_LOGITS][0], padded, image, output)
    probabilities, no_object = arrays[protocol.CLASS_PROBABILITIES][0], arrays[protocol.NO_OBJECT][0]
    return GivenEvidence(masks, probabilities, no_object, load_kernels())


def result_of(call: Call, arrays: Mapping[str, np.ndarray]) -> Result:
    """The result in a server's answer."""
    classes = [name.decode() for name in arrays[protocol.CLASS_NAMES][0]]
    evidence = evidence_of(arrays) if protocol.SIZES in arrays else None
    labels, scores = arrays[protocol.LABELS][0], arrays[protocol.SCORES][0]
    # What comes over the wire is read-only, and what a segmenter gives is not.
    return RemoteResult(np.array(labels), np.array(scores), classes, call.source, evidence)


def json_of(array: np.ndarray) -> Any:
    """What stands in an output of one JSON text."""
    return json.loads(bytes(array.ravel()[0]))


def pauses(retries: int, draw: Callable[[], float] = random.random) -> Iterator[float]:
    """Seconds to wait before each further try: doubling, and drawn from the upper half so that clients spread out."""
    longest = FIRST_PAUSE
    for _ in range(retries):
        yield longest * (0.5 + draw() / 2)
        longest = min(2 * longest, LONGEST_PAUSE)


def passes(error: Exception) -> bool:
    """Whether the same request may go well a moment later."""
    if isinstance(error, OSError):
        return True
    status = str(_status(error))
    if status in ("400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND", "StatusCode.DEADLINE_EXCEEDED"):
        return "not ready" in str(error).lower() or "queue size" in str(error).lower()
    if status in ("503", "429", "StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED"):
        return True
    return any(sign in str(error).lower() for sign in PASSING)


def translated(error: Exception, url: str) -> ServerError | ImageError | VocabularyError:
    """The error to raise: the kind that the local segmenter would, where the server's message tells it."""
    message = getattr(error, "message", None)
    text = message() if callable(message) else str(error)
    text = " ".join(str(text or error).split()) or type(error).__name__
    status = str(_status(error))
    if status in ("400", "StatusCode.INVALID_ARGUMENT"):
        if "name" in text or "vocabulary" in text or "CLASSES" in text:
            return VocabularyError(text)
        if "image" in text or "PIXELS" in text:
            return ImageError(text)
        return ServerError(f"the server {url} refused the request: {text}")
    return ServerError(f"the server {url} does not answer: {text}; see that it runs and is ready")


def _status(error: Exception) -> Any:
    status = getattr(error, "status", None)
    with contextlib.suppress(Exception):
        return status() if callable(status) else status
    return None


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
