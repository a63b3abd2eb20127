"""Runs of `vocabseg batch` in processes of their own: how they are followed, and their workers found and killed."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

# The committed files; the others come and go.
KEPT = ("shards", "plan", "summary", "errors.parquet", "batch.json")


@contextlib.contextmanager
def started(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A run under way, which ends with the block at the latest."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "vocabseg", "batch", *map(str, arguments)]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def write_images(folder: Path, count: int, first: int = 0, size: tuple[int, int] = (96, 120)) -> list[Path]:
    """Rendered scenes as PNG, named by their number."""
    from vocabseg.benchmarks.scenes.world import render_scene

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        Image.fromarray(render_scene(7, "test", number, size=size).image).save(path)
    return paths


def outputs(folder: Path) -> dict[str, bytes]:
    """The content of every committed file, by its path within the output folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] in KEPT)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def committed_shards(folder: Path) -> int:
    """How many shards are there."""
    shards = folder / "shards"
    return len(list(shards.iterdir())) if shards.is_dir() else 0


def workers_of(driver: int) -> list[int]:
    """The process ids of a driver's Ray actors; Linux only."""
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
    """End a process without a chance to clean up."""
    os.kill(pid, signal.SIGKILL)


def own_megabytes(pid: int) -> float | None:
    """Memory that a process has to itself (RssAnon of /proc/PID/status); None where it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return None
