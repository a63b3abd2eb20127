"""A bundle's own pipeline with a stopwatch at every stage.

Nothing is measured on a copy of the pipeline: `Segmenter` runs as it always does, and its kernels and engines are
wrapped so that each call is timed and, on request, its arrays are kept.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vocabseg.runtime.bundle import Bundle
from vocabseg.runtime.engines import Engine
from vocabseg.runtime.regions import Regions
from vocabseg.runtime.segmenter import Segmenter

# The kernels that are stages of their own; calls of others are theirs who call.
KERNELS = ("resize_normalize", "region_boxes", "crop_regions", "compose")


def _nothing() -> None:
    """The host has nothing to wait for."""


@dataclass
class Stopwatch:
    """Seconds by stage, and with `keep` what each stage gave.

    `synchronise` returns once the device has done all it was told; it is called before every reading of the clock.
    """

    keep: bool = False
    synchronise: Callable[[], None] = _nothing
    seconds: dict[str, float] = field(default_factory=dict)
    kept: dict[str, list[Any]] = field(default_factory=dict)

    def start(self, keep: bool = False) -> None:
        """Forget everything."""
        self.keep, self.seconds, self.kept = keep, {}, {}

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

    def note(self, stage: str, thing: Any) -> None:
        """Keep what a stage gave, if that is wanted."""
        if self.keep:
            self.kept.setdefault(stage, []).append(thing)


class ObservedKernels:
    """The functions of a kernels module, the stages among them timed."""

    def __init__(self, kernels: Any, watch: Stopwatch):
        self._kernels = kernels
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)
        if name not in KERNELS:
            return function

        def timed(*arguments: Any, **options: Any) -> Any:
            with self._watch.measure(name):
                result = function(*arguments, **options)
            self._watch.note(name, result)
            return result

        return timed


class ObservedEngine:
    """An engine whose runs are timed under its graph's name."""

    def __init__(self, engine: Engine, graph: str, watch: Stopwatch):
        self._engine, self._graph, self._watch = engine, graph, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Any:
        """As Engine.run."""
        with self._watch.measure(self._graph):
            outputs = self._engine.run(inputs)
        self._watch.note(self._graph, outputs)
        return outputs


class ObservedSegmenter(Segmenter):
    """A Segmenter that tells its stopwatch how long every stage takes."""

    def __init__(self, bundle: Bundle, device: str, engine: str | None, precision: str | None):
        self.watch = Stopwatch()
        super().__init__(bundle, device, engine, precision)
        self.kernels: Any = ObservedKernels(self.kernels, self.watch)

    def engine(self, graph: str) -> Any:
        """The observed engine of a graph."""
        return ObservedEngine(super().engine(graph), graph, self.watch)

    def classify(self, regions: Regions, vocabulary: Any) -> Any:
        """`regions.classify`, of whose time what is not the composing counts as the stage "classify"."""
        before = self.watch.seconds.get("compose", 0.0)
        begin = self.watch.now()
        result = regions.classify(vocabulary)
        spent = self.watch.now() - begin
        self.watch.add("classify", spent - (self.watch.seconds.get("compose", 0.0) - before))
        return result
