"""What this device can do at most: the rate of a matrix product and of a copy, measured where the benchmark runs.

A measured peak, not the vendor's: what the machine gives now, with this clock, these neighbours and these threads.
"""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from vocabseg.benchmarks.speed.results import Peaks
from vocabseg.runtime.threads import thread_count

SIDE = 1536  # of the matrices: 9 MB each in float32, enough work that nothing but the product counts
COPIED = 128 * 2**20  # bytes of a copy: more than any cache holds
REPEAT = 5


@dataclass(frozen=True)
class PeakSpec:
    """The measurement as something that a worker process opens."""

    name: str = "the peak measurement"
    precision: str = ""
    device: str = "cpu"

    def open(self) -> Any:
        """Ready to measure."""
        if self.device == "cpu":
            return PeakMeter()
        from vocabseg.benchmarks.speed.gpu_peaks import DevicePeakMeter

        return DevicePeakMeter(self.device)


class PeakMeter:
    """Measures this process's peaks."""

    def measure(self) -> Peaks:
        """The best of a few runs of each."""
        threads = thread_count()
        products = {"float32": _rate(_numpy_product())}
        how = "NumPy"
        if find_spec("torch") is not None:
            import torch

            torch.set_num_threads(threads)
            products["float32"] = max(products["float32"], _rate(_torch_product("float32")))
            products["bfloat16"] = _rate(_torch_product("bfloat16"))
            if hasattr(torch, "_int_mm"):
                products["int8"] = _rate(_int8_product())
            how = "the faster of NumPy and PyTorch"
        text = (
            f"product of two {SIDE} x {SIDE} matrices by {how}; copy of {COPIED // 2**20} MiB, bytes read and written"
        )
        return Peaks(products=products, copy=_copy_rate(threads), threads=threads, how=text)


def merge(first: Peaks, second: Peaks) -> Peaks:
    """The higher ones of two measurements."""
    products = {name: max(rate, second.products.get(name, 0.0)) for name, rate in first.products.items()}
    return Peaks(products=products, copy=max(first.copy, second.copy), threads=first.threads, how=first.how)


def _rate(product: Callable[[], Any]) -> float:
    """Operations per second: the best run, since disturbances only ever slow it down."""
    product()
    return 2.0 * SIDE**3 / min(_seconds(product) for _ in range(REPEAT))


def _numpy_product() -> Callable[[], Any]:
    matrix = _matrix()
    return lambda: matrix @ matrix


def _torch_product(precision: str) -> Callable[[], Any]:
    import torch

    matrix = torch.from_numpy(_matrix()).to(getattr(torch, precision))
    return lambda: matrix @ matrix


def _int8_product() -> Callable[[], Any]:
    import torch

    matrix = torch.from_numpy(_matrix() * 40).to(torch.int8)
    return lambda: torch._int_mm(matrix, matrix)


def _matrix() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)


def _copy_rate(threads: int) -> float:
    """Bytes per second, read and written, of a copy that all threads share."""
    source = np.ones(COPIED // 4, np.float32)
    target = np.zeros_like(source)
    edges = [len(source) * part // threads for part in range(threads + 1)]
    parts = [slice(begin, end) for begin, end in itertools.pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))

        copy()
        return 2.0 * source.nbytes / min(_seconds(copy) for _ in range(REPEAT))


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
