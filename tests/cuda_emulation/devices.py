"""The two devices that the kernels' tests run on: a GPU, and the emulation of one. Both through runtime/cuda/."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.cuda_emulation.library import Emulation, emulation
from tests.fake_driver.machine import FATBIN, Machine, installed
from tests.gpu import skip_without_gpu
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device, open_device
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels.device.face import CudaKernels

DEVICES = ("emulated", pytest.param("gpu", marks=pytest.mark.gpu))


class Bench:
    """A device with its kernels and one stream, and shorthands to get arrays there and back."""

    def __init__(self, device: Device, kernels: CudaKernels):
        self.device, self.kernels = device, kernels
        self.stream = device.stream()
        self._kept: list[object] = []

    def up(self, array: np.ndarray) -> DeviceArray:
        """A copy on the device."""
        host = np.ascontiguousarray(array)
        target = self.device.empty(host.shape, host.dtype)
        if host.size:
            self.stream.upload(target, host)
        self._kept += [host, target]
        return target

    def new(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Memory that nobody has written to."""
        return self.device.empty(shape, dtype)

    def down(self, array: DeviceArray) -> np.ndarray:
        """A copy on the host, when everything before is done."""
        if 0 in array.shape:
            self.stream.synchronize()
            return np.empty(array.shape, array.dtype)
        return array.to_host(self.stream)


@contextlib.contextmanager
def opened(name: str, seed: int = 0, watched: bool = False, kernels: Emulation | None = None) -> Iterator[Bench]:
    """The device "emulated" or "gpu"; skips, with the reason, where there is none.

    Emulated, blocks and threads run in an order drawn from `seed` (0: as numbered), and `watched` has every access to
    memory checked; `kernels` take the place of those of this machine.
    """
    if name == "gpu":
        try:
            device = open_device(0)
        except EngineError as error:
            skip_without_gpu(error)
        yield Bench(device, CudaKernels(device))
        return
    machine, kernels = Machine(), kernels or emulation(watched)
    kernels.seed(seed)
    with installed(machine, kernels):
        device = open_device(0)
        yield Bench(device, CudaKernels(device, FATBIN))
