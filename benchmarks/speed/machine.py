"""The machine and the software that figures belong to."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vocabseg.runtime.doctor import examine
from vocabseg.runtime.threads import thread_count

PACKAGES = ("vocabseg", "numpy", "openvino", "onnxruntime", "tensorrt", "torch", "onnx")


def describe_machine() -> dict[str, str]:
    """What a reader needs to judge the figures, as text by name; "not installed" or "unknown" where that is so."""
    found = {finding.what: finding.text for finding in examine() if finding.what in ("python", "processor")}
    return {
        **found,
        "cores": _cores(),
        "threads used": str(thread_count()),
        "memory": _memory(),
        "load before": _load(),
        **{package: _version(package) for package in PACKAGES},
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cores() -> str:
    """Physical and logical ones."""
    logical = os.cpu_count() or 1
    cores = set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for block in info.read_text().split("\n\n"):
            entry = {
                key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.split("\n"))
            }
            if "core id" in entry:
                cores.add((entry.get("physical id"), entry["core id"]))
    return f"{len(cores) or 'unknown'} physical, {logical} logical"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (OSError, ValueError, AttributeError):  # not on every system
        return "unknown"


def _load() -> str:
    """Processes that were running or waiting over the last minute: other people's work makes figures worse."""
    try:
        return f"{os.getloadavg()[0]:.2f} processes"
    except (OSError, AttributeError):
        return "unknown"


def _commit() -> str:
    """The checkout's commit, with a mark where files differ from it; "unknown" for an installed package."""
    folder = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run.stdout.strip() or "unknown"
