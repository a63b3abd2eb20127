"""Who does the work of an evaluation: this process, or several of them with a segmenter each."""

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from types import TracebackType
from typing import Protocol

import numpy as np

from vocabseg.benchmarks.accuracy.measure import Outcome, measure, vocabulary_of
from vocabseg.benchmarks.accuracy.sources import Segment, Source
from vocabseg.benchmarks.datasets.dataset import Dataset, Sample
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.text.vocabulary import Vocabulary


class Runner(Protocol):
    """Measures images; used as a context manager."""

    def outcomes(self, samples: Sequence[Sample]) -> Iterator[Outcome]: ...

    def labels(self, sample: Sample) -> np.ndarray: ...

    def __enter__(self) -> "Runner": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass
class Work:
    """What every image needs; the segmenter is opened on first use."""

    source: Source
    dataset: Dataset
    measures: Collection[str]
    _opened: tuple[Segment, Vocabulary] | None = field(default=None, init=False)

    def opened(self) -> tuple[Segment, Vocabulary]:
        if self._opened is None:
            self._opened = (self.source.open(), vocabulary_of(self.dataset))
        return self._opened

    def outcome(self, sample: Sample) -> Outcome:
        segment, vocabulary = self.opened()
        return measure(segment, self.dataset, sample, vocabulary, self.measures)

    def labels(self, sample: Sample) -> np.ndarray:
        segment, vocabulary = self.opened()
        return np.asarray(segment(sample.image, vocabulary).labels)


class LocalRunner:
    """One image after the other, here."""

    def __init__(self, work: Work):
        self._work = work

    def __enter__(self) -> "LocalRunner":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def outcomes(self, samples: Sequence[Sample]) -> Iterator[Outcome]:
        """The outcomes in the order of the samples."""
        return map(self._work.outcome, samples)

    def labels(self, sample: Sample) -> np.ndarray:
        """The predicted label map (H, W) of one image."""
        return self._work.labels(sample)


class PoolRunner:
    """Several processes; each opens its own segmenter and takes its share of the threads."""

    def __init__(self, work: Work, workers: int):
        # A fresh process each: engines with threads do not survive a fork.
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (work, workers))

    def __enter__(self) -> "PoolRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def outcomes(self, samples: Sequence[Sample]) -> Iterator[Outcome]:
        """The outcomes in the order of the samples, whichever is ready first."""
        try:
            yield from self._pool.map(_outcome, samples)
        except BrokenProcessPool:
            raise EngineError("a worker process died, perhaps for want of memory: run with fewer --workers") from None

    def labels(self, sample: Sample) -> np.ndarray:
        """The predicted label map (H, W) of one image."""
        return self._pool.submit(_labels, sample).result()


_work: Work | None = None


def _start(work: Work, workers: int) -> None:
    global _work
    _work = work
    if not os.environ.get("VOCABSEG_THREADS"):
        from vocabseg.runtime.threads import thread_count

        os.environ["VOCABSEG_THREADS"] = str(max(1, thread_count() // workers))


def _current() -> Work:
    if _work is None:
        raise RuntimeError("the worker process was not started with work")
    return _work


def _outcome(sample: Sample) -> Outcome:
    return _current().outcome(sample)


def _labels(sample: Sample) -> np.ndarray:
    return _current().labels(sample)
