"""Answers requests together, whatever their vocabularies; one that cannot be answered does not affect the others.

A large model, and any on a GPU, takes them through `Segmenter.segment_pairs`, which overlaps the stages of successive
images, while further ones are decoded ahead. Of a small model on a CPU, several threads answer an image each.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.runtime.threads import thread_count
from vocabseg.serving.answering.answers import Tensors, tensors
from vocabseg.serving.answering.requests import ImageRequest
from vocabseg.serving.protocol import RequestLimits

Answer = Tensors | Exception

# Images decoded ahead of the one that is segmented: the next ones are ready, and no more than that are in memory.
AHEAD = 2
GONE = "the client has gone: nobody waits for this answer"


class ServiceStatistics:
    """What the server has done so far. Stages overlap, and so do their seconds."""

    def __init__(self) -> None:
        self.images = 0
        self.regions = 0
        self.rejected = 0
        self.batches = 0
        self.request_seconds = 0.0  # from when the model takes a request until its answer leaves
        self.seconds = {"decode": 0.0, "names": 0.0, "segment": 0.0, "answer": 0.0}
        self._lock = threading.Lock()

    def add(
        self, images: int = 0, regions: int = 0, rejected: int = 0, batches: int = 0, request_seconds: float = 0.0
    ) -> None:
        with self._lock:
            self.images += images
            self.regions += regions
            self.rejected += rejected
            self.batches += batches
            self.request_seconds += request_seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begin
            with self._lock:
                self.seconds[stage] += took


class Responder:
    """A segmenter that answers requests; `parallel` threads at most may use one."""

    def __init__(self, segmenter: Segmenter, limits: RequestLimits):
        self.segmenter = segmenter
        self.limits = limits
        self.statistics = ServiceStatistics()
        # Threads that are to answer, each with a core: one more than there are, as they also wait for Triton.
        threads = thread_count()
        self.parallel = threads + 1 if segmenter.small and threads > 1 else 1
        self._decoders = ThreadPoolExecutor(min(4, thread_count()), "decode")

    def close(self) -> None:
        self._decoders.shutdown(cancel_futures=True)

    def answer(
        self,
        requests: Iterable[ImageRequest],
        settle: Callable[[int, Answer], None],
        gone: Callable[[int], bool] = lambda index: False,
    ) -> None:
        """Call `settle(index, answer)` for each request, as soon as there is an answer.

        The answer is the request's tensors, or why there are none: a VocabsegError for what the client can fix.
        `requests` is read on while images are segmented. `gone(index)` tells whether the client no longer waits; it is
        called just before the image is segmented, and again and again while its names are encoded. Names that were
        encoded by then are kept.
        """
        under_way: deque[tuple[int, ImageRequest]] = deque()
        decoded = self._decoded(enumerate(requests))

        def finish(index: int, answer: Answer) -> None:
            failed = isinstance(answer, Exception)
            self.statistics.add(images=not failed, rejected=failed)
            settle(index, answer)

        def pairs() -> Iterator[tuple[np.ndarray, Vocabulary]]:
            for index, request, pixels in decoded:
                if isinstance(pixels, Exception):
                    finish(index, pixels)
                elif (refused := self._embed(index, request, gone)) is not None:
                    finish(index, refused)
                else:
                    under_way.append((index, request))
                    yield pixels, request.vocabulary

        while True:
            try:
                for result in self._results(pairs()):
                    index, request = under_way.popleft()
                    finish(index, self._made(result, request))
                return
            except Exception:  # one image can fail all those behind it: they run again, each alone
                if not under_way and next(pairs(), None) is None:  # it failed before it took any
                    return
                while under_way:
                    index, request = under_way.popleft()
                    finish(index, self._alone(request))

    def _results(self, pairs: Iterator[tuple[np.ndarray, Vocabulary]]) -> Iterator[Result]:
        if self.segmenter.small:
            for pixels, vocabulary in pairs:
                with self.statistics.timed("segment"):
                    result = self.segmenter.propose(pixels).classify(vocabulary)
                yield result
            return
        results = self.segmenter.segment_pairs(pairs)
        while True:
            with self.statistics.timed("segment"):
                following = next(results, None)
            if following is None:
                return
            yield following

    def _embed(self, index: int, request: ImageRequest, gone: Callable[[int], bool]) -> Exception | None:
        """Embed new names; returns why the request is not to be answered, also where `gone` cannot tell."""

        def ask(*progress: object) -> None:
            if gone(index):
                raise ImageError(GONE)

        try:
            with self.statistics.timed("names"):
                self.segmenter.embed_names(request.vocabulary, ask)
            ask()
            return None
        except Exception as error:
            return error

    def _decoded(
        self, requests: Iterable[tuple[int, ImageRequest]]
    ) -> Iterator[tuple[int, ImageRequest, np.ndarray | Exception]]:
        """Index, request and pixels of each request; where one thread answers, a few are decoded ahead."""
        if self.segmenter.small:
            for index, request in requests:
                yield index, request, self._decode(request)
            return
        coming: deque[tuple[int, ImageRequest, Future[np.ndarray | Exception]]] = deque()
        for index, request in requests:
            coming.append((index, request, self._decoders.submit(self._decode, request)))
            if len(coming) > AHEAD:
                first, one, future = coming.popleft()
                yield first, one, future.result()
        for index, request, future in coming:
            yield index, request, future.result()

    def _decode(self, request: ImageRequest) -> np.ndarray | Exception:
        try:
            with self.statistics.timed("decode"):
                return load_image(request.image, self.limits.max_pixels)
        except Exception as error:
            return error

    def _made(self, result: Result, request: ImageRequest) -> Answer:
        try:
            with self.statistics.timed("answer"):
                if result.evidence is not None:
                    self.statistics.add(regions=len(result.evidence.class_probabilities))
                return tensors(result, request)
        except Exception as error:
            return error

    def _alone(self, request: ImageRequest) -> Answer:
        try:
            with self.statistics.timed("segment"):
                pixels = load_image(request.image, self.limits.max_pixels)
                result = next(self.segmenter.segment_pairs([(pixels, request.vocabulary)]))
        except Exception as error:
            return error
        return self._made(result, request)
