"""How far TensorRT's builder is: its nested phases as one figure, and a way to stop it."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from vocabseg.runtime.engines.tensorrt.package import trt

if TYPE_CHECKING:
    import tensorrt

# Called as progress(what, done, total).
Progress = Callable[[str, int, int], None]
PARTS = 1000


class Phases:
    """Phases within phases, each with a number of steps, as one fraction of the whole that never falls.

    A phase that runs inside another counts as part of the step that the other is in. Called from several threads.
    """

    def __init__(self) -> None:
        self.fraction = 0.0
        self._lock = threading.Lock()
        self._parents: dict[str, str | None] = {}
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._parents[name] = parent if parent in self._parents else None
            self._steps[name], self._done[name] = max(steps, 1), 0

    def step(self, name: str, step: int) -> None:
        """Step number `step`, counted from 0, is done."""
        with self._lock:
            if name in self._done:
                self._done[name] = min(max(self._done[name], step + 1), self._steps[name])
                self._update()

    def finish(self, name: str) -> None:
        with self._lock:
            if name not in self._parents:
                return
            if self._parents[name] is None:
                self._done[name] = self._steps[name]
                self._update()
            for table in (self._parents, self._steps, self._done):
                table.pop(name, None)

    def _update(self) -> None:
        # Several phases may stand at the top, one after the other; the builder's own is the longest by far.
        tops = [self._part(name) for name, parent in self._parents.items() if parent is None]
        self.fraction = min(max([self.fraction, *tops]), 1.0)

    def _part(self, name: str) -> float:
        inside = sum(self._part(child) for child, parent in self._parents.items() if parent == name)
        return min((self._done[name] + min(inside, 1.0)) / self._steps[name], 1.0)


class Monitor:
    """What TensorRT tells about a build goes to `progress`; `cancel` makes the builder stop at its next step."""

    def __init__(self, what: str, progress: Progress):
        self._what, self._progress = what, progress
        self._phases = Phases()
        self._cancelled = threading.Event()
        self._shown = -1
        self._lock = threading.Lock()

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._phases.start(phase_name, parent_phase, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Whether to go on."""
        self._phases.step(phase_name, step)
        self._show()
        return not self.cancelled

    def phase_finish(self, phase_name: str) -> None:
        self._phases.finish(phase_name)
        self._show()

    def _show(self) -> None:
        done = int(self._phases.fraction * PARTS)
        with self._lock:
            if done <= self._shown:
                return
            self._shown = done
            self._progress(self._what, done, PARTS)


def progress_monitor(monitor: Monitor) -> "tensorrt.IProgressMonitor":
    """The monitor in the form that TensorRT takes; it must live as long as the builder."""

    class ProgressMonitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return monitor.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            monitor.phase_finish(phase_name)

    return ProgressMonitor()
