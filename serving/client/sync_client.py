"""Client: a served bundle, called as the local segmenter is."""

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from vocabseg.runtime.errors import ImageError, OnError, VocabsegError, sifted
from vocabseg.runtime.result.result import Result
from vocabseg.serving import protocol
from vocabseg.serving.client.call import Call, VocabularyName, panoptic_call, segment_call
from vocabseg.serving.client.retries import Attempts
from vocabseg.serving.client.transport import transport_of

# Requests under way at a time in `segment_many`: more than a server's batch, so that it never waits for this client.
CONCURRENCY = 16


class Client:
    """Segments images on a server, by HTTP or gRPC; threads may share one.

    `url` is "http://host:8000", "https://host", "grpc://host:8001" or "grpcs://host"; without a scheme, HTTP. `timeout`
    in seconds is for a whole call with all its tries; temporary failures (a full queue, a lost connection, a model
    process that is being restarted) are tried again up to `retries` times, after pauses that double.
    """

    def __init__(self, url: str, model: str = protocol.MODEL, timeout: float = 60.0, retries: int = 8):
        self.url = url
        self.model = model
        self.timeout = timeout
        self.retries = retries
        self._transport = transport_of(url)
        self._local = threading.local()
        self._opened: list[Any] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            opened, self._opened = self._opened, []
        for connection in opened:
            connection.close()
        self._local = threading.local()

    def __call__(self, image: Any, vocabulary: Any = None, evidence: bool = False) -> Result:
        """Segment one image: a path, the bytes of an image file, a PIL image or a (H, W, 3) uint8 RGB array.

        `vocabulary` is what the local segmenter takes, or `client.named("...")`, or None for the bundle's own. With
        `evidence` (some megabytes) the result answers `class_scores`, `panoptic` and `instances`, too; without, it
        holds labels and scores. Raises ImageError, VocabularyError, and ServerError if the server does not answer.
        """
        result: Result = self._send(segment_call(image, vocabulary, evidence))
        return result

    @staticmethod
    def named(name: str) -> VocabularyName:
        """The vocabulary that the server knows by this name."""
        return VocabularyName(name)

    def segment_many(
        self,
        images: Iterable[Any],
        vocabulary: Any = None,
        evidence: bool = False,
        concurrency: int = CONCURRENCY,
        on_error: OnError = "raise",
    ) -> Iterator[Any]:
        """Segment images, several requests at a time; results come in order.

        `on_error` says what becomes of an image that cannot be used: its ImageError is raised and ends the iteration
        ("raise"), the image is left out ("skip"), or the error takes the place of the result ("yield").
        """
        return sifted(self._outcomes(images, vocabulary, evidence, concurrency), on_error)

    def _outcomes(
        self, images: Iterable[Any], vocabulary: Any, evidence: bool, concurrency: int
    ) -> Iterator[Result | VocabsegError]:
        def segment(image: Any) -> Result | VocabsegError:
            try:
                return self(image, vocabulary, evidence)
            except ImageError as error:
                return error

        with ThreadPoolExecutor(concurrency, "client") as pool:
            coming: list[Future[Result | VocabsegError]] = []
            try:
                for image in images:
                    coming.append(pool.submit(segment, image))
                    if len(coming) >= concurrency:
                        yield coming.pop(0).result()
                while coming:
                    yield coming.pop(0).result()
            finally:
                for future in coming:
                    future.cancel()

    def segments(self, image: Any, vocabulary: Any = None) -> dict[str, Any]:
        """What `Result.to_json` gives, made by the server: a COCO run-length encoding for each class present."""
        found: dict[str, Any] = self._send(Call(image, vocabulary, (protocol.SEGMENTS,)))
        return found

    def panoptic(
        self,
        image: Any,
        vocabulary: Any = None,
        things: Collection[str | int] | None = None,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """What `Result.panoptic` gives, made by the server."""
        call = panoptic_call(image, vocabulary, things, object_mask_threshold, overlap_threshold)
        ids, segments = self._send(call)
        return ids, segments

    def ready(self) -> bool:
        """Whether the server answers and the model takes requests."""
        try:
            return bool(self._connection(5.0).is_model_ready(self.model))
        except Exception:
            return False

    def _send(self, call: Call) -> Any:
        attempts = Attempts(self.url, self.timeout, self.retries)
        while True:
            left = attempts.seconds_left()
            try:
                answer = self._connection(left).infer(**self._transport.arguments(call, self.model, left))
                break
            except Exception as error:
                pause = attempts.pause_after(error)
                self._forget()
                time.sleep(pause)
        return call.read({name: answer.as_numpy(name) for name in call.wanted})

    def _connection(self, seconds: float) -> Any:
        """This thread's own: HTTP connections of tritonclient must not be shared."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._transport.connect(seconds)
            self._local.connection = connection
            with self._lock:
                self._opened.append(connection)
        self._transport.set_timeout(connection, seconds)
        return connection

    def _forget(self) -> None:
        """A connection that failed may be in the middle of an answer."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.connection = None
            with self._lock:
                self._opened = [other for other in self._opened if other is not connection]
            connection.close()
