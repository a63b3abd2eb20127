"""Answers requests together, whatever their vocabularies; one that cannot be answered does not affect the others.

Images are decoded ahead in threads of their own, names that are not embedded yet are embedded first, and then all
images run through `Segmenter.segment_pairs`, which overlaps their stages.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

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
        self.seconds = {"decode": 0.0, "names": 0.0, "segment": 0.0, "answer": 0.0}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin


class Responder:
    """A segmenter that answers requests; not to be used by several threads at once."""

    def __init__(self, segmenter: Segmenter, limits: RequestLimits):
        self.segmenter = segmenter
        self.limits = limits
        self.statistics = ServiceStatistics()
        self._decoders = ThreadPoolExecutor(min(4, thread_count()), "decode")

    def close(self) -> None:
        self._decoders.shutdown(cancel_futures=True)

    def answer(
        self, requests: Sequence[ImageRequest], gone: Callable[[int], bool] = lambda index: False
    ) -> list[Tensors | Exception]:
        """The tensors for each request, or why there are none: a VocabsegError for what the client can fix.

        `gone(index)` tells whether the client no longer waits; it is called just before the image is segmented, and
        again and again while its names are encoded. Names that were encoded by then are kept.
        """
        with self.statistics.timed("names"):
            refused = self._embed(requests, gone)
        answers: dict[int, Tensors | Exception] = {
            index: refused[request.vocabulary]
            for index, request in enumerate(requests)
            if request.vocabulary in refused
        }
        waiting = [index for index in range(len(requests)) if index not in answers]
        under_way: deque[int] = deque()

        def pairs() -> Iterator[tuple[np.ndarray, Vocabulary]]:
            for index, pixels in self._decoded(requests, waiting):
                if gone(index):
                    answers[index] = ImageError(GONE)
                elif isinstance(pixels, Exception):
                    answers[index] = pixels
                else:
                    under_way.append(index)
                    yield pixels, requests[index].vocabulary

        results = self.segmenter.segment_pairs(pairs())
        while True:
            try:
                with self.statistics.timed("segment"):
                    result = next(results, None)
            except Exception:  # one image can fail all those behind it: they run again, each alone
                break
            if result is None:
                break
            index = under_way.popleft()
            answers[index] = self._finish(result, requests[index])
        for index in waiting:
            if index not in answers:
                answers[index] = self._alone(requests[index])
        failed = sum(isinstance(answer, Exception) for answer in answers.values())
        self.statistics.images += len(answers) - failed
        self.statistics.rejected += failed
        return [answers[index] for index in range(len(requests))]

    def _embed(self, requests: Sequence[ImageRequest], gone: Callable[[int], bool]) -> dict[Vocabulary, Exception]:
        """Embed new names; returns the vocabularies that cannot be used, and why."""
        waiting: dict[Vocabulary, list[int]] = {}
        for index, request in enumerate(requests):
            waiting.setdefault(request.vocabulary, []).append(index)
        refused: dict[Vocabulary, Exception] = {}
        for vocabulary, indices in waiting.items():
            try:
                self.segmenter.embed_names(vocabulary, partial(_ask, indices, gone))
            except Exception as error:
                refused[vocabulary] = error
        return refused

    def _decoded(
        self, requests: Sequence[ImageRequest], indices: Sequence[int]
    ) -> Iterator[tuple[int, np.ndarray | Exception]]:
        """Index and pixels of each request, a few decoded ahead."""
        coming: deque[tuple[int, Future[np.ndarray | Exception]]] = deque()
        for index in indices:
            coming.append((index, self._decoders.submit(self._decode, requests[index])))
            if len(coming) > AHEAD:
                first, future = coming.popleft()
                yield first, future.result()
        for index, future in coming:
            yield index, future.result()

    def _decode(self, request: ImageRequest) -> np.ndarray | Exception:
        try:
            with self.statistics.timed("decode"):
                return load_image(request.image, self.limits.max_pixels)
        except Exception as error:
            return error

    def _finish(self, result: Result, request: ImageRequest) -> Tensors | Exception:
        try:
            with self.statistics.timed("answer"):
                if result.evidence is not None:
                    self.statistics.regions += len(result.evidence.class_probabilities)
                return tensors(result, request)
        except Exception as error:
            return error

    def _alone(self, request: ImageRequest) -> Tensors | Exception:
        try:
            with self.statistics.timed("segment"):
                pixels = load_image(request.image, self.limits.max_pixels)
                result = next(self.segmenter.segment_pairs([(pixels, request.vocabulary)]))
        except Exception as error:
            return error
        return self._finish(result, request)


def _ask(indices: Sequence[int], gone: Callable[[int], bool], *progress: object) -> None:
    """Raise ImageError if nobody waits for any of the requests any more."""
    if all(gone(index) for index in indices):
        raise ImageError(GONE)
