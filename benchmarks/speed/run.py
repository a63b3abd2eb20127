"""Runs a benchmark: all variants take turns, image by image, so that a disturbance of the machine meets them alike."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.benchmarks.speed.assemble import Entry, assemble, batches_of, fresh_names
from vocabseg.benchmarks.speed.cold import cold_start
from vocabseg.benchmarks.speed.machine import describe_machine
from vocabseg.benchmarks.speed.parity import compare_image
from vocabseg.benchmarks.speed.peaks import PeakSpec, merge
from vocabseg.benchmarks.speed.results import (
    ImageInfo,
    Peaks,
    Report,
)
from vocabseg.benchmarks.speed.scenes import knows_the_world
from vocabseg.benchmarks.speed.selection import Plan
from vocabseg.benchmarks.speed.variants import Capture, EngineSpec, Spec
from vocabseg.benchmarks.speed.workers import Worker, numerical_threads
from vocabseg.runtime.errors import EngineError, VocabsegError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels.geometry import padded_size, resized_size
from vocabseg.runtime.threads import thread_count

# Called as progress(what, done, total).
Progress = Callable[[str, int, int], None]
# Passes of what is measured besides the rounds: batches and text.
PASSES = 3


@dataclass(frozen=True)
class WorstImage:
    """The image on which a variant agrees least with the other: both label maps (H, W)."""

    variant: str
    image: Path
    agreement: float
    expected: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """The report, the worst image of every variant that was compared, and the names of the classes."""

    report: Report
    worst: list[WorstImage]
    classes: tuple[str, ...]


def run_benchmark(plan: Plan, progress: Progress, start: Callable[[Spec], Any] = Worker) -> Outcome:
    """Measure everything that `plan` asks for; `start` makes the worker of a variant.

    Raises VocabsegError where no variant can be measured; one that fails beside others is reported with its reason.
    """
    machine = describe_machine()
    bench = _Bench(plan, progress, start)
    try:
        return bench.run(machine)
    finally:
        bench.close()


class _Bench:
    def __init__(self, plan: Plan, progress: Progress, start: Callable[[Spec], Any]):
        self.plan, self.progress, self._start = plan, progress, start
        self.entries: list[Entry] = []
        self.oracle: Entry | None = None
        self.worst: dict[str, WorstImage] = {}
        self.infos: list[ImageInfo] = []
        self.truths: list[np.ndarray] = []

    @property
    def alive(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.reason is None]

    def run(self, machine: dict[str, str]) -> Outcome:
        peaks = self._peaks("measuring the machine")
        self._open()
        rounds = self._rounds()
        self._batches()
        for entry in self.alive:
            entry.memory = self._ask(entry, "memory")
            if self.plan.device != "cpu":
                entry.device_memory = self._ask(entry, "device_memory")
        self._text()
        self._cold_starts()
        self._compare()
        self.close()
        peaks = merge(peaks, self._peaks("measuring the machine again"))
        report = assemble(self.plan, self.entries, self.oracle, self.infos, self.truths, peaks, machine, rounds)
        return Outcome(report, list(self.worst.values()), self.plan.vocabulary.names)

    def close(self) -> None:
        """End all processes."""
        for entry in [*self.entries, *([self.oracle] if self.oracle else [])]:
            if entry.worker is not None:
                entry.worker.close()
                entry.worker = None

    def _peaks(self, what: str) -> Peaks:
        self.progress(what, 0, 1)
        with numerical_threads(thread_count()):
            worker = self._start(PeakSpec(device=self.plan.device))
        try:
            worker.ready()
            return worker.call("measure")
        finally:
            worker.close()

    def _open(self) -> None:
        specs = self.plan.variants
        for done, spec in enumerate(specs):
            self.progress("opening the variants", done, len(specs))
            self.entries.append(self._opened(spec))
        self._check()

    def _opened(self, spec: Spec) -> Entry:
        with numerical_threads(thread_count()):
            entry = Entry(spec, self._start(spec))
        with self._blame(entry):
            entry.worker.ready()
        return entry

    @contextlib.contextmanager
    def _blame(self, entry: Entry) -> Iterator[None]:
        """A failure inside is the variant's: it is told with its reason, and the others go on."""
        try:
            yield
        except VocabsegError as error:
            entry.reason = f"it failed: {error}"
            entry.worker.close()
            entry.worker = None

    def _ask(self, entry: Entry, method: str, *arguments: Any) -> Any:
        if entry.reason is None:
            with self._blame(entry):
                return entry.worker.call(method, *arguments)
        return None

    def _check(self) -> None:
        if not self.alive:
            raise EngineError(f"no variant could be measured; {self.entries[0].spec.name}: {self.entries[0].reason}")

    def _rounds(self) -> int:
        """One round to warm up, then rounds until there are enough or the time is over; at least one."""
        images, budget = self.plan.images, self.plan.budget
        steps = (budget.repeat + 1) * len(images)
        begin, rounds = time.monotonic(), 0
        for round_ in range(-1, budget.repeat):
            if round_ == 0:
                begin = time.monotonic()
            for index, image in enumerate(images):
                if round_ > 0 and time.monotonic() - begin > budget.seconds:
                    return rounds
                what = "warming up" if round_ < 0 else "timing"
                self.progress(what, (round_ + 1) * len(images) + index, steps)
                turn = (index + max(round_, 0)) % max(len(self.alive), 1)  # nobody always comes behind the same one
                for entry in [*self.alive[turn:], *self.alive[:turn]]:
                    found = self._ask(entry, "run", image)
                    if found is not None and round_ >= 0:
                        entry.runs.append((index, found))
            self._check()
            rounds = round_ + 1
        return rounds

    def _batches(self) -> None:
        images, budget = self.plan.images, self.plan.budget
        begin = time.monotonic()
        for pass_ in range(min(PASSES, budget.repeat)):
            for number, count in enumerate(budget.batches):
                if pass_ and time.monotonic() - begin > budget.seconds / 2:
                    return
                self.progress("timing batches", pass_ * len(budget.batches) + number, PASSES * len(budget.batches))
                groups = batches_of(len(images), count)
                for entry in self.alive:
                    spent = [self._ask(entry, "many", [images[index] for index in group]) for group in groups]
                    if entry.reason is None:
                        entry.batches.setdefault(count, []).append(sum(spent) / len(groups))

    def _text(self) -> None:
        names = fresh_names(self.plan)
        for pass_ in range(min(PASSES, self.plan.budget.repeat) if names else 0):
            self.progress("timing the text encoder", pass_, PASSES)
            for entry in self.alive:
                seconds = self._ask(entry, "text", names)
                if seconds is not None:
                    entry.text.append(seconds)

    def _cold_starts(self) -> None:
        budget, plan = self.plan.budget, self.plan
        entries = [entry for entry in self.alive if isinstance(entry.spec, EngineSpec)]
        for done, entry in enumerate(entries if budget.cold else []):
            self.progress("starting fresh processes", done, len(entries))
            spec = entry.spec
            if isinstance(spec, EngineSpec):
                entry.cold = cold_start(
                    spec.folder, spec.engine, spec.precision, plan.settings, plan.vocabulary.names, plan.images[0],
                    budget.cold, spec.device,
                )  # fmt: skip

    def _compare(self) -> None:
        """Parity on every image, then mean IoU on scenes where the bundle knows their classes."""
        plan = self.plan
        measured = {entry.spec.name: entry for entry in self.alive}
        if plan.oracle is not None:
            self.progress("opening what parity is measured against", 0, 1)
            self.oracle = measured.get(plan.oracle.name) or self._opened(plan.oracle)
            if self.oracle.reason is not None:
                raise EngineError(f"parity cannot be measured: {plan.oracle.name}: {self.oracle.reason}")
        compared = [entry for entry in self.alive if self.oracle is not None and entry is not self.oracle]
        for index, image in enumerate(plan.images):
            self.progress("comparing the stages", index, len(plan.images))
            expected = None if self.oracle is None else self._oracle("capture", image)
            self.infos.append(self._info(index, expected))
            for entry in compared:
                if expected is not None and entry.reason is None:
                    with self._blame(entry):
                        self._compare_image(entry, image, expected)
        if self.oracle is not None and knows_the_world(plan.vocabulary.names):
            self._label_scenes([*compared, self.oracle])

    def _oracle(self, method: str, *arguments: Any) -> Any:
        if self.oracle is None:
            raise EngineError("there is nothing to compare with")
        return self.oracle.worker.call(method, *arguments)

    def _compare_image(self, entry: Entry, image: Path, expected: Capture) -> None:
        whole = entry.worker.call("capture", image)
        alone = entry.worker.call("capture_from", image, expected)
        figures = compare_image(expected, alone, whole, load_kernels(), self.plan.bundle.manifest.region)
        entry.figures.append(figures)
        name = entry.spec.name
        if name not in self.worst or figures.agreement < self.worst[name].agreement:
            self.worst[name] = WorstImage(name, image, figures.agreement, expected.labels, whole.labels)

    def _label_scenes(self, entries: list[Entry]) -> None:
        from PIL import Image

        from vocabseg.benchmarks.scenes.world import render_scene

        count = self.plan.budget.scenes
        with tempfile.TemporaryDirectory(prefix="vocabseg-bench-") as folder:
            for index in range(count):
                self.progress("segmenting labelled scenes", index, count)
                scene = render_scene(0, "test", index)
                path = Path(folder) / "scene.png"
                Image.fromarray(scene.image).save(path)
                self.truths.append(scene.labels)
                for entry in entries:
                    if entry.reason is None:
                        entry.scenes.append(self._ask(entry, "labels", path))

    def _info(self, index: int, expected: Capture | None) -> ImageInfo:
        image, spec = self.plan.images[index], self.plan.bundle.manifest.input
        pixels = load_image(image)
        size = (pixels.shape[0], pixels.shape[1])
        padded = padded_size(*resized_size(*size, spec.min_size, spec.max_size), spec.divisor)
        regions = [run.regions for entry in self.alive for which, run in entry.runs if which == index]
        found = int(expected.valid.sum()) if expected is not None else (regions or [0])[0]
        return ImageInfo(name=image.name, size=size, padded=padded, regions=found)
