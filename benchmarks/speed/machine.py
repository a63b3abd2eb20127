"""The machine that figures belong to: what it is, and the most it does.

Peaks are measured where the benchmark runs, not the vendor's: what the machine gives now, with this clock, these
neighbours and these threads.
"""

import contextlib
import itertools
import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.benchmarks.speed.results import Peaks
from vocabseg.runtime.doctor import processor
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.threads import thread_count

PACKAGES = ("vocabseg", "numpy", "openvino", "onnxruntime", "tensorrt", "torch", "onnx")
SIDE = 1536  # of the matrices: 9 MB each in float32, large enough that only the product counts
COPIED = 128 * 2**20  # bytes of a copy: more than any cache holds
# The same of a GPU: 128 MB each in half precision, and a copy beyond the 50 MB second-level cache of an H200.
DEVICE_SIDE, DEVICE_COPIED = 8192, 8 * COPIED
REPEAT = 5


def describe_machine() -> dict[str, str]:
    """What a reader needs to judge the figures, as text by name; "not installed" or "unknown" where that is so."""
    return {
        "python": f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "processor": processor(),
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
    cores = set()
    info = Path("/proc/cpuinfo")
    for block in info.read_text().split("\n\n") if info.is_file() else ():
        pairs = (line.partition(":") for line in block.split("\n"))
        entry = {key.strip(): value.strip() for key, _, value in pairs}
        if "core id" in entry:
            cores.add((entry.get("physical id"), entry["core id"]))
    return f"{len(cores) or 'unknown'} physical, {os.cpu_count() or 1} logical"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (OSError, ValueError, AttributeError):  # not on every system
        return "unknown"


def _load() -> str:
    """Processes that were running or waiting over the last minute: other work makes the figures worse."""
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


@dataclass(frozen=True)
class PeakSpec:
    """The measurement of the peaks as something that a process of its own opens."""

    device: str = "cpu"
    name: str = "the peak measurement"
    precision: str = ""
    limit: str = ""

    def open(self) -> "PeakMeter":
        """Ready to measure."""
        return PeakMeter(self.device)


@dataclass
class PeakMeter:
    """Measures the peaks of a device, as this process sees it."""

    device: str = "cpu"

    def measure(self) -> Peaks:
        """The best of a few runs of each; raises EngineError for a GPU that PyTorch does not see."""
        return _host_peaks() if self.device == "cpu" else _device_peaks(self.device)


def merge(first: Peaks, second: Peaks) -> Peaks:
    """The higher ones of two measurements."""
    products = {name: max(rate, second.products.get(name, 0.0)) for name, rate in first.products.items()}
    return Peaks(products=products, copy=max(first.copy, second.copy), threads=first.threads, how=first.how)


def _host_peaks() -> Peaks:
    threads = thread_count()
    matrix = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    products, how = {"float32": _host_rate(lambda: matrix @ matrix)}, "NumPy"
    if find_spec("torch") is not None:
        import torch

        torch.set_num_threads(threads)
        tensor = torch.from_numpy(matrix)
        half, whole = tensor.bfloat16(), (40 * tensor).to(torch.int8)
        products["float32"] = max(products["float32"], _host_rate(lambda: tensor @ tensor))
        products["bfloat16"] = _host_rate(lambda: half @ half)
        if hasattr(torch, "_int_mm"):
            products["int8"] = _host_rate(lambda: torch._int_mm(whole, whole))
        how = "the faster of NumPy and PyTorch"
    text = f"product of two {SIDE} x {SIDE} matrices by {how}; copy of {COPIED // 2**20} MiB, bytes read and written"
    return Peaks(products=products, copy=_host_copy_rate(threads), threads=threads, how=text)


def _host_rate(product: Callable[[], Any]) -> float:
    """Operations per second of a product of two matrices."""
    return 2.0 * SIDE**3 / _host_seconds(product)


def _host_copy_rate(threads: int) -> float:
    """Bytes per second, read and written, of a copy that all threads share."""
    source = np.ones(COPIED // 4, np.float32)
    target = np.zeros_like(source)
    edges = [len(source) * part // threads for part in range(threads + 1)]
    parts = [slice(begin, end) for begin, end in itertools.pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _host_seconds(lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts)))
    return 2.0 * source.nbytes / seconds


def _host_seconds(work: Callable[[], Any]) -> float:
    """The best of a few runs, since disturbances only ever slow it down; one before them warms up."""
    times = []
    for _ in range(REPEAT + 1):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _device_peaks(device: str) -> Peaks:
    try:
        import torch
    except ImportError:
        raise EngineError("measuring a GPU's peaks needs PyTorch with CUDA: pip install torch") from None
    if not torch.cuda.is_available():
        raise EngineError("the installed PyTorch sees no GPU: its peaks cannot be measured; install it with CUDA")
    torch.backends.cuda.matmul.allow_tf32 = False

    def rate(product: Callable[[], Any]) -> float:
        return 2.0 * DEVICE_SIDE**3 / _device_seconds(torch, product)

    matrix = torch.randn(DEVICE_SIDE, DEVICE_SIDE, device=device)
    products = {}
    for name in ("float32", "bfloat16", "float16"):
        typed = matrix.to(getattr(torch, name))
        products[name] = rate(lambda typed=typed: typed @ typed)  # type: ignore[misc]
    # As far as this GPU and this PyTorch have them.
    with contextlib.suppress(AttributeError, RuntimeError):
        whole = (40 * matrix).to(torch.int8)
        products["int8"] = rate(lambda: torch._int_mm(whole, whole.t()))
    with contextlib.suppress(AttributeError, RuntimeError, ValueError):
        small, one = matrix.to(torch.float8_e4m3fn), torch.ones((), device=device)
        products["fp8"] = rate(lambda: torch._scaled_mm(small, small.t(), one, one, out_dtype=torch.bfloat16))
    source = torch.ones(DEVICE_COPIED // 4, device=device)
    target = torch.empty_like(source)
    copy = 2.0 * DEVICE_COPIED / _device_seconds(torch, lambda: target.copy_(source))
    how = (
        f"product of two {DEVICE_SIDE} x {DEVICE_SIDE} matrices by PyTorch, TF32 off; copy of "
        f"{DEVICE_COPIED // 2**20} MiB on {torch.cuda.get_device_name(device)}, bytes read and written"
    )
    return Peaks(products=products, copy=copy, threads=1, how=how)


def _device_seconds(torch: Any, work: Callable[[], Any]) -> float:
    """The best of a few runs by the GPU's own events; two before them warm up."""
    times = []
    for _ in range(REPEAT + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return min(times[2:])
