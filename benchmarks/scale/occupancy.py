"""What processes take of the cores: CPU time, and how often a core had nothing of theirs to do."""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from vocabseg.runtime.threads import usable_cpus

# Seconds between two looks.
LOOK = 0.05


def cpu_seconds(pid: int) -> float:
    """CPU seconds, of user and system, that the process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class IdleCores:
    """As a context, looks on how many cores nothing of these processes ran or was ready to run.

    A thread that is ready while other work has the core counts as running: the share is about the processes, and not
    about what else the machine does.
    """

    def __init__(self, pids: Sequence[int]):
        self._pids = pids
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._idle: list[float] = []
        self.cost = 0.0  # CPU seconds that looking itself took, in this process

    def __enter__(self) -> "IdleCores":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def share(self) -> float:
        """The mean share of the cores, 0..1."""
        return sum(self._idle) / max(1, len(self._idle))

    def _look(self) -> None:
        cores = usable_cpus()
        while not self._end.wait(LOOK):
            self._idle.append(max(0, cores - self._ready()) / cores)
        self.cost = time.thread_time()

    def _ready(self) -> int:
        """Threads that run or could, but for the one that looks."""
        count = 0
        for pid in self._pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                if int(task.name) == threading.get_native_id():
                    continue
                with contextlib.suppress(OSError):  # it has just ended
                    count += (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
        return count
