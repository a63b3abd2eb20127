"""Client: a served bundle, called as the local segmenter is."""

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from vocabseg.runtime.errors import EngineError, ServerError
from vocabseg.runtime.result.result import Result
from vocabseg.serving import protocol
from vocabseg.serving.call import Call, Named, json_of, passes, pauses, result_of, translated

RESULT = (protocol.LABELS, protocol.SCORES, protocol.CLASS_NAMES)
# Requests under way at a time in `segment_many`: more than a server's batch, so that it never waits for this client.
CONCURRENCY = 16


class Client:
    """Segments images on a server, by HTTP or gRPC; threads may share one.

    `url` is "http://host:8000", "https://host", "grpc://host:8001" or "grpcs://host"; without a scheme, HTTP. `timeout`
    is for a whole call in seconds, with all its tries; what fails in passing (a full queue, a lost connection, a
    model process that is being restarted) is tried again up to `retries` times, after pauses that double.
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
        holds labels and scores. Raises ImageError, VocabularyError, and ServerError where the server does not answer.
        """
        wanted = RESULT + (protocol.EVIDENCE if evidence else ())
        call = Call(image, vocabulary, wanted)
        return result_of(call, self._send(call))

    @staticmethod
    def named(name: str) -> Named:
        """The vocabulary that the server knows by this name."""
        return Named(name)

    def segment_many(
        self, images: Iterable[Any], vocabulary: Any = None, evidence: bool = False, concurrency: int = CONCURRENCY
    ) -> Iterator[Result]:
        """Segment images, several requests at a time; results come in order."""
        with ThreadPoolExecutor(concurrency, "client") as pool:
            coming: list[Future[Result]] = []
            try:
                for image in images:
                    coming.append(pool.submit(self, image, vocabulary, evidence))
                    if len(coming) >= concurrency:
                        yield coming.pop(0).result()
                while coming:
                    yield coming.pop(0).result()
            finally:
                for future in coming:
                    future.cancel()

    def segments(self, image: Any, vocabulary: Any = None) -> dict[str, Any]:
        """What `Result.to_json` gives, made by the server: a COCO run-length encoding for each class present."""
        arrays = self._send(Call(image, vocabulary, (protocol.SEGMENTS,)))
        found: dict[str, Any] = json_of(arrays[protocol.SEGMENTS])
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
        arrays = self._send(panoptic_call(image, vocabulary, things, object_mask_threshold, overlap_threshold))
        return np.array(arrays[protocol.PANOPTIC][0]), json_of(arrays[protocol.PANOPTIC_SEGMENTS])

    def ready(self) -> bool:
        """Whether the server answers and the model takes requests."""
        try:
            return bool(self._connection(5.0).is_model_ready(self.model))
        except Exception:
            return False

    def _send(self, call: Call) -> dict[str, np.ndarray]:
        end = time.monotonic() + self.timeout
        waits = pauses(self.retries)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise ServerError(f"the server {self.url} gave no answer within {self.timeout:g} s")
            try:
                answer = self._connection(left).infer(**self._transport.arguments(call, self.model, left))
                return {name: answer.as_numpy(name) for name in call.wanted}
            except Exception as error:
                wait = next(waits, None) if passes(error) else None
                if wait is None or time.monotonic() + wait >= end:
                    if time.monotonic() + 0.01 >= end or is_timeout(error):
                        raise ServerError(f"the server {self.url} gave no answer within {self.timeout:g} s") from error
                    raise translated(error, self.url) from error
                self._forget()
                time.sleep(wait)

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


def panoptic_call(image: Any, vocabulary: Any, things: Any, object_mask_threshold: float, overlap: float) -> Call:
    options = {"things": things, "object_mask_threshold": object_mask_threshold, "overlap_threshold": overlap}
    return Call(image, vocabulary, (protocol.PANOPTIC, protocol.PANOPTIC_SEGMENTS), options)


def is_timeout(error: Exception) -> bool:
    """Whether the time ran out while the answer was waited for."""
    return "deadline exceeded" in str(error).lower() or "timed out" in str(error).lower()


def transport_of(url: str, asynchronous: bool = False) -> Any:
    """The transport for a URL; raises ServerError for one it cannot be, EngineError without tritonclient."""
    from vocabseg.serving.transport import Grpc, Http

    scheme, separator, place = url.partition("://")
    scheme, place = (scheme.lower(), place) if separator else ("http", url)
    if scheme not in ("http", "https", "grpc", "grpcs") or not place.strip("/") or "@" in place:
        raise ServerError(f"{url!r} is no address of a server: give http://host:8000 or grpc://host:8001")
    kind = Http if scheme.startswith("http") else Grpc
    try:
        return kind(place.rstrip("/"), scheme.endswith("s"), asynchronous)
    except ImportError as error:
        raise EngineError(f"the client needs tritonclient ({error}): pip install 'vocabseg[serving]'") from error
