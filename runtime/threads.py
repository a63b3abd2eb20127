"""How many threads engines and kernels use."""

import math
import os
import threading
from functools import cache
from pathlib import Path

from vocabseg.runtime.errors import EngineError

_own = threading.local()


def limit_threads(count: int) -> None:
    """Limit whatever the calling thread runs from now on to `count` threads; for threads that work in parallel."""
    _own.count = count


def thread_count(wanted: int | None = None) -> int:
    """Threads to use: `wanted`, else `limit_threads`, else VOCABSEG_THREADS, else the CPUs the process may use.

    Raises EngineError for a count below 1 or one that is not a number.
    """
    if wanted is None:
        wanted = getattr(_own, "count", None)
    if wanted is None:
        setting = os.environ.get("VOCABSEG_THREADS", "").strip()
        if not setting:
            return usable_cpus()
        if not setting.isdecimal() or int(setting) < 1:
            raise EngineError(f"VOCABSEG_THREADS is {setting!r}: give a whole number of at least 1")
        wanted = int(setting)
    if wanted < 1:
        raise EngineError(f"the number of threads is {wanted}: give 1 or more")
    return min(wanted, 1024)


@cache
def usable_cpus() -> int:
    """CPUs this process may use: its affinity and, on Linux, the control group's quota, rounded up."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no control group, or a quota of "max"
        pass
    return max(count, 1)
