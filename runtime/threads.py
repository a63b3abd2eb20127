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
    """CPUs this process may use: its affinity and, on Linux, its control groups' least quota, rounded up."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    return max(min([count, *map(math.ceil, cpu_quotas())]), 1)


def cpu_quotas(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """How many CPUs the process's control group may use, and those around it, of version 1 and 2, where limited.

    `groups` is where their file systems are mounted, `own` lists the process's groups (man 7 cgroups). A container may
    see its own group as the root, under another name than the one listed.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in lines:
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in {groups / controllers, groups / "cpu"} if controllers else (groups, groups / "unified"):
            folder = root / path.lstrip("/")
            found += [_quota(one) for one in {root, folder, *folder.parents} if one.is_relative_to(root)]
    return [quota for quota in found if quota is not None]


def _quota(folder: Path) -> float | None:
    """CPUs that a control group may use; None without a limit."""
    try:
        if (folder / "cpu.max").is_file():  # version 2
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or a quota of "max"
        return None
