"""Follows a run: every half second the images that are committed, and how far the attempts under way are."""

import threading
import time
from datetime import timedelta
from pathlib import Path

from vocabseg.batch.worker import read_attempts
from vocabseg.runtime.progress import Progress

SECONDS_PER_LOOK = 0.5


class Follower:
    """A thread that reports the images of `output` that are done, of `total`, of which `before` were done already."""

    def __init__(self, output: Path, total: int, before: int, progress: Progress):
        self.committed = before
        self._output, self._total, self._before = output, total, before
        self._progress = progress
        self._ended = threading.Event()
        self._first: tuple[float, int] | None = None
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._report(self.committed)

    def _follow(self) -> None:
        most = 0
        while not self._ended.wait(SECONDS_PER_LOOK):
            under_way: dict[int, int] = {}
            for attempt in read_attempts(self._output):
                under_way[attempt.shard] = max(under_way.get(attempt.shard, 0), attempt.done)
            most = max(most, min(self._total, self.committed + sum(under_way.values())))
            self._report(most)

    def _report(self, done: int) -> None:
        now = time.monotonic()
        if self._first is None and done > self._before:
            self._first = (now, done)  # the time to start and to open the model does not count
        what = "opening the model" if not done else "segmenting"
        if self._first is not None and done > self._first[1]:
            rate = (done - self._first[1]) / (now - self._first[0])
            what = f"{rate:.3g} images/s, {timedelta(seconds=round((self._total - done) / rate))} left"
        self._progress(what, done, self._total)
