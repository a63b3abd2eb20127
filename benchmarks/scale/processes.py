"""Runs of `vocabseg batch` in processes of their own: following them, finding their workers and killing them."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from vocabseg.benchmarks.process_memory import process_memory
from vocabseg.benchmarks.scenes.files import write_scenes

# The committed files; the others come and go.
KEPT = ("shards", "plan", "summary", "errors.parquet", "batch.json")


@contextlib.contextmanager
def started(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A run in progress; it is killed if it still runs when the block ends."""
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
    folder.mkdir(parents=True, exist_ok=True)
    return write_scenes(folder, count, first, size, seed=7, name="{:04d}.png")


def outputs(folder: Path) -> dict[str, bytes]:
    """The content of every committed file, by its path within the output folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] in KEPT)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def committed_shards(folder: Path) -> int:
    """How many shards are committed."""
    shards = folder / "shards"
    return len(list(shards.iterdir())) if shards.is_dir() else 0


def parents_of_all() -> dict[int, int]:
    """Process id -> that of the parent, of all processes; Linux only."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return parents


def workers_of(driver: int) -> list[int]:
    """The process ids of a driver's Ray actors; Linux only."""
    parents = parents_of_all()
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
    """Kill a process, which has no chance to clean up."""
    os.kill(pid, signal.SIGKILL)


def own_megabytes(pid: int) -> float | None:
    """Memory that a process has to itself; None where it has ended."""
    own = process_memory("RssAnon", pid)
    return None if own is None else own / 2**20
