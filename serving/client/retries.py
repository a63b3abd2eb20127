"""When a client tries again, when it gives up, and which error it raises then."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from vocabseg.runtime.errors import ImageError, ServerError, VocabularyError

# Seconds before the second try; the time doubles at each further one.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
# What a server says when the request is not to blame, and may succeed a moment later.
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


class Attempts:
    """The attempts at one call within `timeout` seconds: how much time is left, and when to try again."""

    def __init__(self, url: str, timeout: float, retries: int):
        self._url, self._timeout = url, timeout
        self._end = time.monotonic() + timeout
        self._pauses = pauses(retries)

    def seconds_left(self) -> float:
        """Raises ServerError if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self._late()
        return left

    def pause_after(self, error: Exception) -> float:
        """Seconds to wait before the next attempt; raises the caller's error if there is none."""
        pause = next(self._pauses, None) if passes(error) else None
        now = time.monotonic()
        if pause is None or now + pause >= self._end:
            late = is_timeout(error) or now + 0.01 >= self._end
            raise (self._late() if late else translated(error, self._url)) from error
        return pause

    def _late(self) -> ServerError:
        return ServerError(f"the server {self._url} gave no answer within {self._timeout:g} s")


def pauses(retries: int, draw: Callable[[], float] = random.random) -> Iterator[float]:
    """Seconds to wait before each further try: doubling, and drawn from the upper half so that clients spread out."""
    longest = FIRST_PAUSE
    for _ in range(retries):
        yield longest * (0.5 + draw() / 2)
        longest = min(2 * longest, LONGEST_PAUSE)


def passes(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, OSError):
        return True
    status, text = _status(error), str(error).lower()
    if status in ("400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND", "StatusCode.DEADLINE_EXCEEDED"):
        return "not ready" in text or "queue size" in text
    if status in ("503", "429", "StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED"):
        return True
    return any(sign in text for sign in PASSING)


def is_timeout(error: Exception) -> bool:
    """Whether the time ran out while waiting for the answer."""
    text = str(error).lower()
    return isinstance(error, TimeoutError) or "deadline exceeded" in text or "timed out" in text


def translated(error: Exception, url: str) -> ServerError | ImageError | VocabularyError:
    """The error to raise: of the local segmenter's kind, if the server's message shows which."""
    message = getattr(error, "message", None)
    text = message() if callable(message) else str(error)
    text = " ".join(str(text or error).split()) or type(error).__name__
    if _status(error) in ("400", "StatusCode.INVALID_ARGUMENT"):
        if "name" in text or "vocabulary" in text or "CLASSES" in text:
            return VocabularyError(text)
        if "image" in text or "PIXELS" in text:
            return ImageError(text)
        return ServerError(f"the server {url} refused the request: {text}")
    return ServerError(f"the server {url} does not answer: {text}; check that it runs and is ready")


def _status(error: Exception) -> str:
    status: Any = getattr(error, "status", None)
    with contextlib.suppress(Exception):
        status = status() if callable(status) else status
    return str(status)
