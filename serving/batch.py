"""Answers requests together, whatever their vocabularies; one that cannot be answered does not touch the others.

Images are decoded ahead by threads of their own, names that nobody has encoded yet are encoded first, and then all
images run through `Segmenter.segment_pairs`, which overlaps their stages.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from vocabseg.runtime.errors import ImageError, VocabsegError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.runtime.threads import thread_count
from vocabseg.serving.answers import Tensors, tensors
from vocabseg.serving.protocol import Limits
from vocabseg.serving.requests import Ask

# Images decoded ahead of the one that is segmented: the next ones are ready, and no more than that lie in memory.
AHEAD = 2


class Tally:
    """What the server has done so far. Seconds overlap where stages do."""

    def __init__(self) -> None:
        self.images = 0
        self.regions = 0
        self.rejected = 0
        self.seconds = {"decode": 0.0, "names": 0.0, "segment": 0.0, "answer": 0.0}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin


class Batch:
    """A segmenter that answers requests; not to be used by several threads at once."""

    def __init__(self, segmenter: Segmenter, limits: Limits):
        self.segmenter = segmenter
        self.limits = limits
        self.tally = Tally()
        self._decoders = ThreadPoolExecutor(min(4, thread_count()), "decode")

    def close(self) -> None:
        self._decoders.shutdown(cancel_futures=True)

    def answer(
        self, asks: Sequence[Ask], gone: Callable[[int], bool] = lambda index: False
    ) -> list[Tensors | Exception]:
        """The tensors of each ask, or else why there are none: VocabsegError for what the client can mend.

        `gone(index)` tells whether nobody waits for that answer any more: it is asked before the image's turn comes.
        """
        answers: list[Tensors | Exception | None] = [None] * len(asks)
        with self.tally.timed("names"):
            refused = self._embed({ask.vocabulary for ask in asks})
        for index, ask in enumerate(asks):
            answers[index] = refused.get(ask.vocabulary)
        waiting = [index for index in range(len(asks)) if answers[index] is None]
        order: list[int] = []

        def pairs() -> Iterator[tuple[np.ndarray, Vocabulary]]:
            for index, pixels in self._decoded(asks, waiting):
                if gone(index):
                    answers[index] = ImageError("the client has gone: nobody waits for this answer")
                elif isinstance(pixels, Exception):
                    answers[index] = pixels
                else:
                    order.append(index)
                    yield pixels, asks[index].vocabulary

        results = self.segmenter.segment_pairs(pairs())
        place = 0
        while True:
            try:
                with self.tally.timed("segment"):
                    result = next(results, None)
            except Exception:  # one image can fail all behind it: those are run again, each alone
                break
            if result is None:
                break
            index = order[place]
            place += 1
            answers[index] = self._finish(result, asks[index])
        for index in waiting:
            if answers[index] is None:
                answers[index] = self._alone(asks[index])
        finished = [RuntimeError("no answer was computed") if answer is None else answer for answer in answers]
        self.tally.images += sum(not isinstance(answer, Exception) for answer in finished)
        self.tally.rejected += sum(isinstance(answer, Exception) for answer in finished)
        return finished

    def _embed(self, vocabularies: set[Vocabulary]) -> dict[Vocabulary, Exception]:
        """Encode names that are new, and say which vocabularies cannot be used."""
        refused: dict[Vocabulary, Exception] = {}
        for vocabulary in vocabularies:
            try:
                self.segmenter.embed_names(vocabulary)
            except Exception as error:
                refused[vocabulary] = error
        return refused

    def _decoded(self, asks: Sequence[Ask], indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray | Exception]]:
        """Index and pixels of each ask, a few decoded ahead."""
        coming: list[tuple[int, Future[np.ndarray | Exception]]] = []
        for index in indices:
            coming.append((index, self._decoders.submit(self._decode, asks[index])))
            if len(coming) > AHEAD:
                first, future = coming.pop(0)
                yield first, future.result()
        for index, future in coming:
            yield index, future.result()

    def _decode(self, ask: Ask) -> np.ndarray | Exception:
        begin = time.perf_counter()
        try:
            return load_image(ask.image, self.limits.max_pixels)
        except Exception as error:
            return error
        finally:
            self.tally.seconds["decode"] += time.perf_counter() - begin

    def _finish(self, result: Result, ask: Ask) -> Tensors | Exception:
        try:
            with self.tally.timed("answer"):
                if result.evidence is not None:
                    self.tally.regions += len(result.evidence.class_probabilities)
                return tensors(result, ask)
        except Exception as error:
            return error

    def _alone(self, ask: Ask) -> Tensors | Exception:
        try:
            with self.tally.timed("segment"):
                pixels = load_image(ask.image, self.limits.max_pixels)
                result = next(self.segmenter.segment_pairs([(pixels, ask.vocabulary)]))
        except Exception as error:
            return error
        return self._finish(result, ask)


def is_users(error: Exception) -> bool:
    """Whether the client can mend it; everything else is the server's fault."""
    return isinstance(error, VocabsegError)
