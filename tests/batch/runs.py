"""Runs of `vocabseg batch` in processes of their own, and waiting for them."""

import subprocess
import time
from pathlib import Path

from vocabseg.benchmarks.scale.processes import committed_shards, started

# Larger network input than the demo model's own makes its images slow enough to be interrupted.
SLOW = ("--set", "input.min_size=448")


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    with started(*arguments) as process:
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for_shards(process: "subprocess.Popen[str]", folder: Path, count: int, seconds: float = 120) -> None:
    """Until so many shards are committed, while the run is still going on."""
    end = time.monotonic() + seconds
    while committed_shards(folder) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"only {committed_shards(folder)} of {count} shards after {seconds} s"
        time.sleep(0.01)


def wait_for_end(pids: list[int], seconds: float = 30) -> None:
    """Until none of the processes runs any more."""
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "the workers outlive their driver"
        time.sleep(0.05)
