"""Runs of `vocabseg batch` in processes of their own, and how their workers are found and killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

# Larger network input than the demo model's own makes its images slow enough to be interrupted.
SLOW = ("--set", "input.min_size=448")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vocabseg", "batch", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)


def write_images(folder: Path, count: int, first: int = 0) -> list[Path]:
    """Small scenes as PNG, named by their number."""
    from vocabseg.benchmarks.datasets.world import render_scene

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        Image.fromarray(render_scene(7, "test", number, size=(96, 120)).image).save(path)
    return paths


def outputs(folder: Path) -> dict[str, bytes]:
    """Every committed file: shards, plan, summary, error table."""
    kept = ("shards", "plan", "summary", "errors.parquet", "batch.json")
    files = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] in kept)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def committed(folder: Path) -> int:
    """How many shards are there."""
    shards = folder / "shards"
    return len(list(shards.iterdir())) if shards.is_dir() else 0


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A run under way, which ends with the block at the latest."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command(*arguments), stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for_shards(process: subprocess.Popen[str], folder: Path, count: int, seconds: float = 120) -> None:
    """Until so many shards are committed, while the run is still going on."""
    end = time.monotonic() + seconds
    while committed(folder) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"only {committed(folder)} of {count} shards after {seconds} s"
        time.sleep(0.01)


def workers_of(driver: int) -> list[int]:
    """The process ids of a driver's Ray actors."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for pid in parents:
        with contextlib.suppress(OSError):
            if b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes() and driver in _ancestors(pid, parents):
                found.append(pid)
    return found


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    chain = []
    while (pid := parents.get(pid, 0)) > 1:
        chain.append(pid)
    return chain


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def wait_for_end(pids: list[int], seconds: float = 30) -> None:
    """Until none of the processes runs any more."""
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "the workers outlive their driver"
        time.sleep(0.05)


def resident_megabytes(pid: int) -> float:
    """Memory that a process has to itself (RssAnon of /proc/PID/status)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float(np.nan)
