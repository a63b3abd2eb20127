"""Who looks on while a pipeline works: a stopwatch for what is timed from outside, and an observer of its stages."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vocabseg.runtime.segmenter.stages import Mark


def _nothing() -> None:
    """The host has nothing to wait for."""


@dataclass
class Stopwatch:
    """Seconds by stage.

    `synchronise` returns once the device has done all it was told; it is called before every reading of the clock.
    """

    synchronise: Callable[[], None] = _nothing
    seconds: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Forget everything."""
        self.seconds = {}

    def now(self) -> float:
        """The clock in seconds, once the device is at rest."""
        self.synchronise()
        return time.perf_counter()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        begin = self.now()
        yield
        self.add(stage, self.now() - begin)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class Timeline:
    """An observer of the pipeline's own stages: their marks, and with `keep` copies of what they gave, by name."""

    def __init__(self, keep: bool = False):
        self.keep = keep
        self.kept: dict[str, list[np.ndarray]] = {}
        self._stages: list[tuple[str, Mark, Mark]] = []

    def stage(self, name: str, begin: Mark, end: Mark) -> None:
        """One run of a stage."""
        self._stages.append((name, begin, end))

    def note(self, name: str, arrays: Mapping[str, Any]) -> None:
        """What a stage gave; its buffers are used again, so it is copied now."""
        if self.keep:
            for key, array in arrays.items():
                host = array.to_host() if hasattr(array, "to_host") else np.array(array)
                self.kept.setdefault(key, []).append(host)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage; waits for the last mark."""
        found: dict[str, float] = {}
        for name, begin, end in self._stages:
            end.synchronize()
            found[name] = found.get(name, 0.0) + end.elapsed_since(begin) / 1000
        return found
