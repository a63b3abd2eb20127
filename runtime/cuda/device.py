"""The GPU: one device per process and ordinal, its memory, streams and kernels, on top of PyCUDA.

The context is the device's primary one, which torch, TensorRT and ONNX Runtime use, too, so memory and streams can be
passed between them. No CUDA package is imported before a device is opened; a missing one is reported in one line.

An array returns to the pool as soon as nothing refers to it: code that starts work on a stream must keep the arrays of
that work until it has waited for the stream, or for an event after the work.
"""

import atexit
import math
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.driver import THREAD_LOCAL, checked, exchange_capture_mode, load_driver, megabytes
from vocabseg.runtime.cuda.kernel import Module
from vocabseg.runtime.cuda.memory import Owned, PinnedMemory
from vocabseg.runtime.errors import DeviceMemoryError, EngineError

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.streams import Stream

# cuMemAlloc aligns to this many bytes; no smaller block is ever allocated.
SMALLEST_BLOCK = 256

_devices: dict[int, "Device"] = {}
_opening = threading.Lock()


def open_device(ordinal: int = 0) -> "Device":
    """The GPU with that ordinal, opened once per process; CUDA_VISIBLE_DEVICES decides which GPUs are visible.

    Raises EngineError, in one line, if there is no PyCUDA, driver, GPU or such ordinal.
    """
    with _opening:
        if ordinal not in _devices:
            _devices[ordinal] = Device(load_driver(), ordinal)
        return _devices[ordinal]


@atexit.register
def _close_devices() -> None:
    for device in _devices.values():
        device.close()


def parse_device(device: str) -> int:
    """The ordinal in "cuda" or "cuda:N"; raises EngineError for anything else."""
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise EngineError(f"device {device!r} is not supported: use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    return int(found[1] or 0)


class Device:
    """One GPU. Created by `open_device`; every method may be called from any thread.

    Attributes:
        ordinal: among the GPUs visible to this process.
        name: as reported by the driver, such as "NVIDIA H200".
        compute_capability: such as (9, 0).
        total_memory: bytes.
        driver_version: the driver's CUDA version, such as 13000 for 13.0.
        key: the name of folders of engines, such as "nvidia-h200-sm90".
        closed: whether the process is about to end.
    """

    def __init__(self, driver: Any, ordinal: int):
        count = checked(driver.Device.count)
        if ordinal >= count:
            raise EngineError(f"there is no GPU cuda:{ordinal}: this process sees {count} (CUDA_VISIBLE_DEVICES)")
        device = checked(driver.Device, ordinal)
        self.driver = driver
        self.ordinal = ordinal
        self.name = str(checked(device.name))
        major, minor = checked(device.compute_capability)
        self.compute_capability = (int(major), int(minor))
        self.total_memory = int(checked(device.total_memory))
        self.driver_version = int(checked(driver.get_driver_version))
        self.key = f"{re.sub('[^a-z0-9]+', '-', self.name.lower()).strip('-')}-sm{major}{minor}"
        self._context = checked(device.retain_primary_context)
        self._active = _Active()
        self._activation = _Activation(self._context, self._active)
        self.spare_events: list[Any] = []
        self.closed = False
        with self.activate():
            self._pool, self._pinned = checked(driver.DeviceMemoryPool), checked(driver.PageLockedMemoryPool)

    def __repr__(self) -> str:
        return f"Device(cuda:{self.ordinal}, {self.name})"

    def activate(self) -> "_Activation":
        """A context manager that makes this device's context current in the calling thread; it may be nested.

        Raises EngineError once the device is closed.
        """
        if self.closed:
            raise EngineError(f"{self!r} was closed, as the process is ending: use it before")
        return self._activation

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`checked` with this device's context current."""
        if self._active.depth and not self.closed:
            return checked(function, *arguments)
        with self.activate():
            return checked(function, *arguments)

    @property
    def active(self) -> bool:
        """Whether the context is current in the calling thread."""
        return self._active.depth > 0

    def stream(self) -> "Stream":
        """A new stream that does not wait for the default one."""
        from vocabseg.runtime.cuda.streams import Stream

        return Stream(self)

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """An uninitialised, C-contiguous array from the pool; raises DeviceMemoryError if memory runs out."""
        return self.together((shape, dtype))[0]

    def together(self, *arrays: tuple[Sequence[int], Any]) -> list[DeviceArray]:
        """`empty` arrays, each a shape and a dtype, in one block that is freed when none of them is left."""
        places, size = [], 0
        for shape, dtype in arrays:
            places.append(-(-size // SMALLEST_BLOCK) * SMALLEST_BLOCK)
            size = places[-1] + math.prod(shape) * np.dtype(dtype).itemsize
        block = self._allocate(max(size, SMALLEST_BLOCK))
        start = int(block.raw)
        return [
            DeviceArray(self, shape, dtype, start + place, block)
            for place, (shape, dtype) in zip(places, arrays, strict=True)
        ]

    def _allocate(self, size: int) -> Owned:
        with self.activate():
            try:
                return Owned(self, checked(self._pool.allocate, size))
            except DeviceMemoryError as error:
                free, total = checked(self.driver.mem_get_info)
                raise DeviceMemoryError(
                    f"the GPU is out of memory: {megabytes(size)} were needed, {megabytes(free)} of "
                    f"{megabytes(total)} are free; use smaller images, or stop other users of {self.name}"
                ) from error

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Page-locked memory from a pool: copies to and from it are asynchronous."""
        shape = tuple(int(size) for size in shape)
        if 0 in shape:
            return np.empty(shape, dtype)
        with self.activate():
            return np.asarray(PinnedMemory(self, checked(self._pinned.allocate, shape, np.dtype(dtype))))

    def load_module(self, fatbin: bytes) -> Module:
        """The kernels in `fatbin`; raises EngineError if they are not for this GPU, or too new for its driver."""
        with self.activate():
            try:
                return Module(self, checked(self.driver.module_from_buffer, fatbin))
            except EngineError as error:
                raise EngineError(self._why_no_module(str(error))) from error

    def _why_no_module(self, text: str) -> str:
        major, minor = self.compute_capability
        if "no kernel image" in text:
            return (
                f"the kernels were not built for {self.name} (compute capability {major}.{minor}): build vocabseg with "
                f"-C cmake.define.VOCABSEG_SM={major}{minor}"
            )
        if "unsupported toolchain" in text or "device kernel image is invalid" in text:
            version = f"{self.driver_version // 1000}.{self.driver_version % 1000 // 10}"
            return (
                f"the NVIDIA driver is too old for the kernels: it supports CUDA {version}; install a newer driver, or "
                f"build vocabseg with nvcc {version} or older"
            )
        return text

    def synchronize(self) -> None:
        """Wait for all work started on this device by this process."""
        with self.activate():
            checked(self.driver.Context.synchronize)

    def memory(self) -> dict[str, int]:
        """Bytes: "free" and "total" of the GPU, "active" and "managed" of this process's pool, "pinned" on the host."""
        with self.activate():
            free, total = checked(self.driver.mem_get_info)
        pool = self._pool
        return {
            "free": int(free),
            "total": int(total),
            "active": int(pool.active_bytes),
            "managed": int(pool.managed_bytes),
            "pinned": int(self._pinned.managed_bytes),
        }

    def free_held(self) -> None:
        """Return the memory that the pools hold for reuse to the driver."""
        with self.activate():
            checked(self._pool.free_held)
            checked(self._pinned.free_held)

    def close(self) -> None:
        """Free everything at the end of the process, while PyCUDA still can; nothing can run afterwards."""
        with self.activate():
            self.spare_events.clear()
            self._pool.stop_holding()
            self._pinned.stop_holding()
        self.closed = True
        self._context.detach()


class _Active(threading.local):
    """Of a thread: how often it has entered the context, and its capture mode outside."""

    depth = mode = 0


class _Activation:
    """Pushes a context on a thread's outermost entry and pops it on the outermost exit.

    In between, captures of other threads do not affect this one, nor the reverse.
    """

    def __init__(self, context: Any, state: "_Active"):
        self._context, self._state = context, state

    def __enter__(self) -> None:
        if self._state.depth == 0:
            checked(self._context.push)
            self._state.mode = exchange_capture_mode(THREAD_LOCAL)
        self._state.depth += 1

    def __exit__(self, *error: object) -> None:
        self._state.depth -= 1
        if self._state.depth == 0:
            exchange_capture_mode(self._state.mode)
            checked(self._context.pop)
