"""Tests over the genuine PyCUDA and cuda-bindings and the fake driver, in this process: `installed` and its Machine."""

import contextlib
import ctypes
import importlib
import os
import struct
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NoReturn

import numpy as np
import pytest

from tests.cuda_emulation.library import Emulation
from tests.fake_driver.build import KERNELS, MissingError, build_fakes, find_pycuda

FATBIN = struct.pack("<I", 0xBA55ED50)  # as images of kernels begin: enough for a driver that has the kernels itself
POISON = 0xFF
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


class _Control(ctypes.Structure):
    """machine.h's Control."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("total", "used", "largest_block")),
        *((name, ctypes.c_uint64) for name in ("copied_up", "copied_down", "copied_within")),
        ("seed", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("devices", "driver_version", "major", "minor")),
        *((name, ctypes.c_int32) for name in ("init_error", "module_error", "streams")),
    )


def skip(error: MissingError) -> NoReturn:
    """Skip with the reason, or fail where nothing may be missing."""
    if os.environ.get("CI"):
        raise error
    pytest.skip(f"no fake driver: {error}")


@cache
def _driver() -> ctypes.CDLL:
    """The fake libcuda.so.1: that of this process, or one that it is given now."""
    if os.environ.get(KERNELS):
        library = ctypes.CDLL("libcuda.so.1")
    else:
        try:
            library = ctypes.CDLL(str(build_fakes() / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
        except MissingError as error:
            skip(error)
    library.fake_driver_control.restype = ctypes.POINTER(_Control)
    library.fake_driver_fault.restype = ctypes.c_char_p
    return library


@cache
def _load() -> tuple[ctypes.CDLL, Any, dict[str, Any]]:
    """The fake libcuda.so.1, its control, and the genuine modules over it."""
    if os.environ.get(KERNELS):
        pytest.skip("this process runs over the fake driver as a whole: run its tests with -m gpu")
    library, folder = _driver(), str(find_pycuda())
    if not hasattr(ctypes.CDLL("libcuda.so.1"), "fake_driver_control"):
        pytest.skip("this process has NVIDIA's driver already: run the tests of the emulated GPU on their own")
    sys.path.append(folder)
    try:
        importlib.import_module("pycuda.driver")
    finally:
        sys.path.remove(folder)
    modules = {name: sys.modules.pop(name) for name in ("pycuda", "pycuda.driver")}
    return library, library.fake_driver_control().contents, modules


class Machine:
    """The GPU that is not there. Attributes of its control (machine.h) are its own: total, used, devices, major, ..."""

    def __init__(self, memory: int = 2**31, seed: int | None = None):
        """`memory` in bytes; `seed` None runs work as late as possible, a number lets streams take turns at random."""
        self._library = _driver()
        self._control = self._library.fake_driver_control().contents
        self._kept: list[Any] = []
        self._errors: list[BaseException] = []
        if os.environ.get(KERNELS):
            return  # it is that of the whole process
        _load()
        self._library.fake_driver_reset()
        for name, value in zip(("driver_version", "devices", "major", "minor"), (13000, 1, 9, 0), strict=True):
            setattr(self._control, name, value)
        self._control.total = self._control.largest_block = memory
        self._control.seed = -1 if seed is None else seed
        self._control.init_error = self._control.module_error = 0
        self._library.fake_driver_reset()

    def __getattr__(self, name: str) -> int:
        return getattr(self._control, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._control, name, value)

    @property
    def contexts(self) -> int:
        """How many contexts this thread has pushed and not popped."""
        return self._library.fake_driver_contexts()

    @property
    def faults(self) -> list[str]:
        """What no correct program does, as far as no status of a call says so."""
        found = []
        while (text := self._library.fake_driver_fault(len(found))) is not None:
            found.append(text.decode())
        return found

    def bytes(self, address: int, size: int) -> np.ndarray:
        """Memory of the device as bytes; raises IndexError for what was not allocated."""
        if not self._library.fake_driver_inside(ctypes.c_uint64(address), ctypes.c_uint64(size)):
            raise IndexError(f"illegal address: {size} bytes at {address:#x}")
        self._library.fake_driver_written(ctypes.c_uint64(address), ctypes.c_uint64(size), 1)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)

    def put(self, stream: int, work: Callable[[], object]) -> None:
        """Queue work of the host on the stream of this handle; what it raises is raised when the machine is left."""

        jobs, again = [work], self.capturing(stream)  # graphs run it again; else what it refers to is let go

        def run(_: object) -> None:
            try:
                (jobs[0] if again else jobs.pop())()
            except BaseException as error:
                self._errors.append(error)
                self._library.fake_driver_fail(f"work of the host: {error!r}".encode())

        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(run)
        self._kept = [(left, each) for left, each in self._kept if left]
        self._kept.append((jobs, function))
        status = self._library.cuLaunchHostFunc(ctypes.c_void_p(stream), function, None)
        assert status == 0, f"cuLaunchHostFunc: {status}"

    def capturing(self, stream: int) -> bool:
        """Whether the stream of this handle is being captured."""
        status = ctypes.c_int()
        assert self._library.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status)) == 0
        return status.value != 0


@contextlib.contextmanager
def installed(machine: Machine | None = None, kernels: Emulation | None = None) -> Iterator[Machine]:
    """While this lasts, `import pycuda.driver` is the genuine one, over a machine that runs `kernels`.

    At the end nothing may be left: no context that was not popped, and no fault.
    """
    from vocabseg.runtime.cuda import device as cuda

    global _machine
    library, control, modules = _load()
    machine = machine or Machine()
    path = None if kernels is None else kernels.library._name.encode()
    library.fake_driver_kernels(path, int(kernels is not None and kernels.watched))
    library.fake_driver_forget()
    empty, pinned = cuda.Device.empty, cuda.Device.pinned

    def poisoned(self: Any, shape: Any, dtype: Any) -> Any:
        array = empty(self, shape, dtype)  # PyCUDA's pool hands out memory again without a call into the driver
        if array.nbytes:
            library.fake_driver_written(ctypes.c_uint64(array.pointer), ctypes.c_uint64(array.nbytes), 0)
        return array

    def poisoned_pinned(self: Any, shape: Any, dtype: Any) -> np.ndarray:
        array = pinned(self, shape, dtype)
        array.view(np.uint8).fill(POISON) if array.nbytes and array.ndim else None
        return array

    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        devices: dict[int, cuda.Device] = {}
        patch.setattr(cuda, "_devices", devices)
        patch.setattr(cuda.Device, "empty", poisoned)
        patch.setattr(cuda.Device, "pinned", poisoned_pinned)
        _machine = machine
        try:
            yield machine
        except BaseException as error:
            for fault in machine.faults:
                error.add_note(f"the fake driver: {fault}")
            raise
        finally:
            left = 0 if any(device.closed for device in devices.values()) else machine.contexts
            for device in devices.values():
                if not device.closed:
                    device.close()
            library.fake_driver_reset()
            control.init_error, control.total = NO_DEVICE, 0
            library.fake_driver_kernels(None, 0)
        assert not left, "a context was pushed and not popped"
        if machine._errors:
            raise machine._errors[0]
        assert not machine.faults, machine.faults


_machine: Machine | None = None


def current() -> Machine:
    """The machine in use."""
    global _machine
    if _machine is None:
        _machine = Machine()
    return _machine
