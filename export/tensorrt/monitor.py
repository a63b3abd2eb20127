"""How far TensorRT's builder is: its nested phases as one figure, and a way to stop it."""

import threading
from typing import TYPE_CHECKING, Any

from vocabseg.runtime.engines.tensorrt.package import Bindings
from vocabseg.runtime.progress import Progress

if TYPE_CHECKING:
    import tensorrt

PARTS = 1000


class Monitor:
    """Reports phases within phases as one fraction of the whole that never falls; called from several threads.

    A phase inside another counts as part of the step that the other is in. After `cancel` the builder stops at its next
    step.
    """

    def __init__(self, what: str, progress: Progress):
        self.fraction = 0.0
        self.cancelled = False
        self._what, self._progress = what, progress
        self._lock = threading.Lock()
        self._parents: dict[str, str | None] = {}
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def cancel(self) -> None:
        self.cancelled = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        with self._lock:
            self._parents[phase_name] = parent_phase if parent_phase in self._parents else None
            self._steps[phase_name], self._done[phase_name] = max(num_steps, 1), 0

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Step number `step`, counted from 0, is done; whether to go on."""
        with self._lock:
            if phase_name in self._done:
                self._done[phase_name] = min(max(self._done[phase_name], step + 1), self._steps[phase_name])
                self._update()
        return not self.cancelled

    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            if phase_name not in self._parents:
                return
            if self._parents[phase_name] is None:
                self._done[phase_name] = self._steps[phase_name]
                self._update()
            for table in (self._parents, self._steps, self._done):
                table.pop(phase_name, None)

    def _update(self) -> None:
        # There may be several outer phases, one after the other; the builder's own is the longest by far.
        outer = [self._part(name) for name, parent in self._parents.items() if parent is None]
        before, self.fraction = int(self.fraction * PARTS), min(max([self.fraction, *outer]), 1.0)
        if int(self.fraction * PARTS) > before:
            self._progress(self._what, int(self.fraction * PARTS), PARTS)

    def _part(self, name: str) -> float:
        inside = sum(self._part(child) for child, parent in self._parents.items() if parent == name)
        return min((self._done[name] + min(inside, 1.0)) / self._steps[name], 1.0)


def progress_monitor(trt: Bindings, monitor: Monitor) -> "tensorrt.IProgressMonitor":
    """The monitor in the form that TensorRT takes; it must live as long as the builder."""
    base: Any = trt.IProgressMonitor

    class ProgressMonitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return monitor.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            monitor.phase_finish(phase_name)

    return ProgressMonitor()
