"""Runs a benchmark: all variants take turns, image by image, so that a disturbance of the machine meets them alike."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.benchmarks.scenes.world import CLASSES, render_scene
from vocabseg.benchmarks.speed.assemble import Contestant, assemble, batches_of, fresh_names
from vocabseg.benchmarks.speed.engine import EngineSpec
from vocabseg.benchmarks.speed.machine import PeakSpec, describe_machine, merge
from vocabseg.benchmarks.speed.parity import compare_image
from vocabseg.benchmarks.speed.results import BenchmarkReport, ImageInfo, Peaks
from vocabseg.benchmarks.speed.selection import Benchmark
from vocabseg.benchmarks.speed.variants import Capture, VariantSpec
from vocabseg.benchmarks.speed.workers import VariantProcess, cold_start, limited, numerical_threads
from vocabseg.runtime.bundle.sections import BUDGET
from vocabseg.runtime.errors import EngineError, VocabsegError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.progress import Progress
from vocabseg.runtime.segmenter.stages import input_sizes
from vocabseg.runtime.threads import thread_count

# Passes of what is measured besides the rounds: batches and text.
PASSES = 3
# Settings that switch the region budget off.
WITHOUT_BUDGET = tuple(f"region.{key}=none" for key in BUDGET)


@dataclass(frozen=True)
class WorstImage:
    """The image on which a variant agrees least with the other: both label maps (H, W)."""

    variant: str
    image: Path
    agreement: float
    expected: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class BenchmarkOutcome:
    """The report, the worst image of every variant that was compared, and the names of the classes."""

    report: BenchmarkReport
    worst: list[WorstImage]
    classes: tuple[str, ...]


def run_benchmark(
    benchmark: Benchmark, progress: Progress, start: Callable[[Any], Any] = VariantProcess
) -> BenchmarkOutcome:
    """Measure everything that `benchmark` asks for; `start` makes the process of a variant.

    Raises VocabsegError where no variant can be measured; one that fails beside others is reported with its reason.
    """
    running = _Running(benchmark, progress, start)
    try:
        return running.run()
    finally:
        running.close()


class _Running:
    def __init__(self, benchmark: Benchmark, progress: Progress, start: Callable[[Any], Any]):
        self.benchmark, self.progress, self._start = benchmark, progress, start
        self.contestants: list[Contestant] = []
        self.oracle: Contestant | None = None
        self.worst: dict[str, WorstImage] = {}
        self.infos: list[ImageInfo] = []
        self.truths: list[np.ndarray] = []

    @property
    def budgeted(self) -> bool:
        return self.benchmark.bundle.manifest.region.budgeted

    @property
    def alive(self) -> list[Contestant]:
        return [one for one in self.contestants if one.reason is None]

    def run(self) -> BenchmarkOutcome:
        benchmark = self.benchmark
        machine = describe_machine()
        peaks = self._peaks("measuring the machine")
        for done, spec in enumerate(benchmark.variants):
            self.progress("opening the variants", done, len(benchmark.variants))
            self.contestants.append(self._opened(spec))
        self._check()
        rounds = self._rounds()
        self._batches()
        for one in self.alive:
            one.memory = self._ask(one, "memory")
            if benchmark.device != "cpu":
                one.device_memory = self._ask(one, "device_memory")
        self._text()
        self._cold_starts()
        if self.budgeted:
            self._end_budget()
        self._compare()
        self.close()
        peaks = merge(peaks, self._peaks("measuring the machine again"))
        report = assemble(benchmark, self.contestants, self.oracle, self.infos, self.truths, peaks, machine, rounds)
        return BenchmarkOutcome(report, list(self.worst.values()), benchmark.vocabulary.names)

    def close(self) -> None:
        """End all processes."""
        for one in [*self.contestants, *([self.oracle] if self.oracle else [])]:
            if one.process is not None:
                one.process.close()
                one.process = None

    def _peaks(self, what: str) -> Peaks:
        self.progress(what, 0, 1)
        with numerical_threads(thread_count()):
            process = self._start(PeakSpec(self.benchmark.device))
        try:
            process.ready()
            return process.call("measure")
        finally:
            process.close()

    def _opened(self, spec: VariantSpec) -> Contestant:
        with limited(spec), numerical_threads(thread_count()):
            one = Contestant(spec, self._start(spec))
        with self._blame(one):
            one.process.ready()
        return one

    @contextlib.contextmanager
    def _blame(self, one: Contestant) -> Iterator[None]:
        """A failure inside is this variant's: it is reported with its reason, and the others go on."""
        try:
            yield
        except VocabsegError as error:
            one.reason = f"it failed: {error}"
            one.process.close()
            one.process = None

    def _ask(self, one: Contestant, method: str, *arguments: Any) -> Any:
        if one.reason is None:
            with self._blame(one):
                return one.process.call(method, *arguments)
        return None

    def _check(self) -> None:
        if not self.alive:
            first = self.contestants[0]
            raise EngineError(f"no variant could be measured; {first.spec.name}: {first.reason}")

    def _rounds(self) -> int:
        """One round to warm up, then rounds until there are enough or the time is over; at least one."""
        images, effort = self.benchmark.images, self.benchmark.effort
        steps = (effort.repeat + 1) * len(images)
        begin, rounds = time.monotonic(), 0
        for round_ in range(-1, effort.repeat):
            if round_ == 0:
                begin = time.monotonic()
            for index, image in enumerate(images):
                if round_ > 0 and time.monotonic() - begin > effort.seconds:
                    return rounds
                what = "warming up" if round_ < 0 else "timing"
                self.progress(what, (round_ + 1) * len(images) + index, steps)
                turn = (index + max(round_, 0)) % max(len(self.alive), 1)  # none always comes behind the same one
                for one in [*self.alive[turn:], *self.alive[:turn]]:
                    found = self._ask(one, "run", image)
                    if found is not None and round_ >= 0:
                        one.runs.append((index, found))
            self._check()
            rounds = round_ + 1
        return rounds

    def _batches(self) -> None:
        images, effort = self.benchmark.images, self.benchmark.effort
        begin = time.monotonic()
        for pass_ in range(min(PASSES, effort.repeat)):
            for number, count in enumerate(effort.batches):
                if pass_ and time.monotonic() - begin > effort.seconds / 2:
                    return
                self.progress("timing batches", pass_ * len(effort.batches) + number, PASSES * len(effort.batches))
                groups = batches_of(len(images), count)
                for one in self.alive:
                    spent = [self._ask(one, "many", [images[index] for index in group]) for group in groups]
                    if one.reason is None:
                        one.batches.setdefault(count, []).append(sum(spent) / len(groups))

    def _text(self) -> None:
        names = fresh_names(self.benchmark)
        for pass_ in range(min(PASSES, self.benchmark.effort.repeat) if names else 0):
            self.progress("timing the text encoder", pass_, PASSES)
            for one in self.alive:
                seconds = self._ask(one, "text", names)
                if seconds is not None:
                    one.text.append(seconds)

    def _cold_starts(self) -> None:
        benchmark = self.benchmark
        for done, one in enumerate(self.alive if benchmark.effort.cold else []):
            if isinstance(one.spec, EngineSpec):
                self.progress("starting fresh processes", done, len(self.alive))
                with limited(one.spec):
                    one.cold = cold_start(one.spec, benchmark.images[0], benchmark.effort.cold)

    def _end_budget(self) -> None:
        """Go on without the region budget, since parity is that of the published method; count the labels it changes.

        An engine that fails without it is out, as after any other failure.
        """
        images = self.benchmark.images
        engines = [one for one in self.alive if isinstance(one.spec, EngineSpec)]
        for done, one in enumerate(engines):
            self.progress("counting what the region budget changes", done, len(engines))
            other = self._opened(_without_budget(one.spec))
            changed = pixels = 0
            for image in images:
                mine, published = self._ask(one, "labels", image), self._ask(other, "labels", image)
                if mine is not None and published is not None:
                    changed, pixels = changed + int(np.count_nonzero(mine != published)), pixels + mine.size
            if one.reason is None and other.reason is not None:
                one.reason = f"without the region budget, {other.reason}"
            one.relabelled = changed / pixels if pixels else None
            one.process, other.process = other.process, one.process
            if other.process is not None:
                other.process.close()
        self._check()

    def _compare(self) -> None:
        """Parity on every image, then mean IoU on scenes where the bundle knows their classes."""
        benchmark = self.benchmark
        if benchmark.oracle is not None:
            self.progress("opening what parity is measured against", 0, 1)
            measured = {one.spec.name: one for one in self.alive}
            self.oracle = measured.get(benchmark.oracle.name) or self._opened(_without_budget(benchmark.oracle))
            if self.oracle.reason is not None:
                raise EngineError(f"parity cannot be measured: {benchmark.oracle.name}: {self.oracle.reason}")
        compared = [one for one in self.alive if self.oracle is not None and one is not self.oracle]
        for index, image in enumerate(benchmark.images):
            self.progress("comparing the stages", index, len(benchmark.images))
            expected = None if self.oracle is None else self.oracle.process.call("capture", image)
            self.infos.append(self._info(index, expected))
            for one in compared:
                if expected is not None and one.reason is None:
                    with self._blame(one):
                        self._compare_image(one, image, expected)
        if self.oracle is not None and benchmark.vocabulary.names == CLASSES:
            self._label_scenes([*compared, self.oracle])

    def _compare_image(self, one: Contestant, image: Path, expected: Capture) -> None:
        whole = one.process.call("capture", image)
        alone = one.process.call("capture_from", image, expected)
        figures = compare_image(expected, alone, whole, load_kernels(), self.benchmark.bundle.manifest.region)
        one.figures.append(figures)
        name = one.spec.name
        if name not in self.worst or figures.agreement < self.worst[name].agreement:
            self.worst[name] = WorstImage(name, image, figures.agreement, expected.labels, whole.labels)

    def _label_scenes(self, contestants: list[Contestant]) -> None:
        from PIL import Image

        count = self.benchmark.effort.scenes
        with tempfile.TemporaryDirectory(prefix="vocabseg-bench-") as folder:
            path = Path(folder) / "scene.png"
            for index in range(count):
                self.progress("segmenting labelled scenes", index, count)
                scene = render_scene(0, "test", index)
                Image.fromarray(scene.image).save(path)
                self.truths.append(scene.labels)
                for one in contestants:
                    if one.reason is None:
                        one.scenes.append(self._ask(one, "labels", path))

    def _info(self, index: int, expected: Capture | None) -> ImageInfo:
        image, spec = self.benchmark.images[index], self.benchmark.bundle.manifest.input
        h, w = load_image(image).shape[:2]
        padded = input_sizes(spec, h, w)[1]
        runs = [run for one in self.alive for which, run in one.runs if which == index]
        if self.budgeted:  # PyTorch, which has no budget, finds more
            regions, crops = min(((run.regions, run.crops) for run in runs), default=(0, 0))
            return ImageInfo(name=image.name, size=(h, w), padded=padded, regions=regions, crops=crops)
        found = int(expected.valid.sum()) if expected is not None else runs[0].regions if runs else 0
        return ImageInfo(name=image.name, size=(h, w), padded=padded, regions=found)


def _without_budget(spec: VariantSpec) -> VariantSpec:
    """The same without a region budget."""
    return replace(spec, settings=(*spec.settings, *WITHOUT_BUDGET)) if isinstance(spec, EngineSpec) else spec
