"""What a GPU does at most, measured through PyTorch."""

import contextlib
from collections.abc import Callable
from typing import Any

from vocabseg.benchmarks.speed.peaks import COPIED, REPEAT
from vocabseg.benchmarks.speed.results import Peaks
from vocabseg.runtime.errors import EngineError

# Side of the matrices whose product is the GPU's peak: 128 MB each in half precision, far more than its caches.
SIDE = 8192
# Bytes of the GPU's copy: beyond the 50 MB second-level cache of an H200.
DEVICE_COPIED = 8 * COPIED


class DevicePeakMeter:
    """What the GPU does at most, measured through torch."""

    def __init__(self, device: str):
        self._device = device

    def measure(self) -> Peaks:
        """The best of a few runs; raises EngineError where torch sees no GPU."""
        try:
            import torch
        except ImportError:
            raise EngineError("measuring a GPU's peaks needs PyTorch with CUDA: pip install torch") from None
        if not torch.cuda.is_available():
            raise EngineError("the installed PyTorch sees no GPU: its peaks cannot be measured; install it with CUDA")
        torch.backends.cuda.matmul.allow_tf32 = False
        products = {name: self._float_rate(torch, name) for name in ("float32", "bfloat16", "float16")}
        products |= self._eight_bits(torch)
        how = (
            f"product of two {SIDE} x {SIDE} matrices by PyTorch, TF32 off; copy of {DEVICE_COPIED // 2**20} MiB on "
            f"{torch.cuda.get_device_name(self._device)}, bytes read and written"
        )
        return Peaks(products=products, copy=self._copy_rate(torch), threads=1, how=how)

    def _rate(self, torch: Any, product: Callable[[], Any]) -> float:
        """Operations per second of a product of two matrices."""
        return 2.0 * SIDE**3 / self._seconds(torch, product)

    def _float_rate(self, torch: Any, precision: str) -> float:
        matrix = torch.randn(SIDE, SIDE, device=self._device, dtype=getattr(torch, precision))
        return self._rate(torch, lambda: matrix @ matrix)

    def _eight_bits(self, torch: Any) -> dict[str, float]:
        """Products in int8 and FP8, as far as this GPU and this PyTorch have them."""
        matrix = torch.randn(SIDE, SIDE, device=self._device)
        rates = {}
        with contextlib.suppress(AttributeError, RuntimeError):
            whole = (40 * matrix).to(torch.int8)
            rates["int8"] = self._rate(torch, lambda: torch._int_mm(whole, whole.t()))
        with contextlib.suppress(AttributeError, RuntimeError, ValueError):
            small, one = matrix.to(torch.float8_e4m3fn), torch.ones((), device=self._device)
            out = torch.bfloat16
            rates["fp8"] = self._rate(torch, lambda: torch._scaled_mm(small, small.t(), one, one, out_dtype=out))
        return rates

    def _copy_rate(self, torch: Any) -> float:
        source = torch.ones(DEVICE_COPIED // 4, device=self._device)
        target = torch.empty_like(source)
        return 2.0 * DEVICE_COPIED / self._seconds(torch, lambda: target.copy_(source))

    def _seconds(self, torch: Any, work: Any) -> float:
        times = []
        for _ in range(REPEAT + 2):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        return min(times[2:])
