"""`pycuda.driver` and `cuda.bindings.driver` over an emulated machine: the part of them that the runtime uses.

Names, parameters and errors are those of PyCUDA 2026.1 and cuda-bindings 13; test_cuda_fakes.py compares them.
"""

import contextlib
import ctypes
import enum
import itertools
import sys
import threading
import types
import weakref
from collections import defaultdict
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from tests.cuda_emulation.machine import Machine, Mark, OutOfMemory

Launch = Callable[[str, tuple[int, ...], tuple[int, ...], int, bytes], None]


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class RuntimeError(Error):
    pass


_machine: Machine
_launch: Launch | None = None
_settings: dict[str, object] = {}
_contexts = threading.local()
_faults: list[str] = []


def _stack() -> list[object]:
    if not hasattr(_contexts, "stack"):
        _contexts.stack = []
    return _contexts.stack


def _needs_context(call: str) -> None:
    if not _stack():
        raise LogicError(f"{call} failed: invalid device context")


def _unsafe(call: str) -> None:
    """For calls that no capture sees: they fail, and end the capture, in the thread that captures; and in every thread
    while one captures globally, unless the thread has exchanged its mode."""
    mode, me = getattr(_contexts, "mode", 0), threading.get_ident()
    for queue in list(_machine.queues.values()):
        if queue.captured is not None and (queue.capture[1] == me or (queue.capture[0] == 0 and mode == 0)):
            queue.invalidated = True
            raise LogicError(f"{call} failed: operation not permitted when stream is capturing")


def _exchange_mode(mode: object) -> int:
    """cuThreadExchangeStreamCaptureMode."""
    value = mode._obj
    value.value, _contexts.mode = getattr(_contexts, "mode", 0), value.value
    return 0


def begin_capture(handle: int, mode: int) -> None:
    """As cuStreamBeginCapture, in any mode: libraries such as ONNX Runtime capture globally (0)."""
    queue = _machine.queues[handle]
    queue.captured, queue.capture, queue.invalidated = [], (int(mode), threading.get_ident()), False


def _life(call: str, *free: object) -> np.ndarray:
    """At its end `free` is called; without a current context, where PyCUDA warns or aborts, that is a fault.

    It is an array, as the garbage collector does not see arrays: it would end it before what owns it.
    """

    def end() -> None:
        if not _stack():
            _faults.append(f"{call} without a current context")
        if free:
            free[0](*free[1:])

    life = np.empty(0)
    weakref.finalize(life, end).atexit = False
    return life


def init(flags: int = 0) -> None:
    if _settings.get("no_device"):
        raise RuntimeError("cuInit failed: no CUDA-capable device is detected")


def get_driver_version() -> int:
    return int(_settings.get("driver_version", 13000))


class Context:
    def __init__(self) -> None:
        self._valid = True

    def push(self) -> None:
        if not self._valid:
            raise LogicError("cuCtxPushCurrent failed: context is destroyed")
        _stack().append(self)

    @staticmethod
    def pop() -> None:
        if not _stack():
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        _stack().pop()

    def detach(self) -> None:
        if not self._valid:
            raise LogicError("context::detach failed: invalid device context - cannot detach from invalid context")
        self._valid = False

    @staticmethod
    def synchronize() -> None:
        _needs_context("cuCtxSynchronize")
        _unsafe("cuCtxSynchronize")
        _machine.synchronize()


class Device:
    def __init__(self, ordinal: int):
        self._ordinal = ordinal

    @staticmethod
    def count() -> int:
        return int(_settings.get("count", 1))

    def name(self) -> str:
        return "NVIDIA Emulated 100"

    def compute_capability(self) -> tuple[int, int]:
        return _settings.get("compute_capability", (9, 0))

    def total_memory(self) -> int:
        return _machine.total

    def retain_primary_context(self) -> Context:
        return Context()


class Stream:
    def __init__(self, flags: int = 0):
        _needs_context("cuStreamCreate")
        self._queue = _machine.stream()
        self._life = _life("cuStreamDestroy")

    @property
    def handle(self) -> int:
        return self._queue.handle

    def synchronize(self) -> None:
        _unsafe("cuStreamSynchronize")
        _machine.reach(_machine.record(self._queue))

    def is_done(self) -> bool:
        return _machine.record(self._queue).reached

    def wait_for_event(self, event: "Event") -> None:
        if event._mark is not None:  # an event that was never recorded counts as reached
            _machine.wait(self._queue, event._mark)


class Event:
    def __init__(self, flags: int = 0):
        _needs_context("cuEventCreate")
        self._mark: Mark | None = None

    def record(self, stream: Stream | None = None) -> "Event":
        assert stream is not None, "the default stream is never used"
        self._mark = _machine.record(stream._queue)
        return self

    def synchronize(self) -> "Event":
        _unsafe("cuEventSynchronize")
        if self._mark is not None:
            _machine.reach(self._mark)
        return self

    def query(self) -> bool:
        _unsafe("cuEventQuery")
        return self._mark is None or self._mark.reached

    def time_since(self, start: "Event") -> float:
        if not (self.query() and start.query()):
            raise LogicError("cuEventElapsedTime failed: device not ready")
        return 0.001 * max(self._mark.place - start._mark.place, 0)


class function_attribute(enum.IntEnum):
    MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class Function:
    def __init__(self, name: str):
        self._name = name
        self._shared = 48 * 1024

    def set_attribute(self, attr: function_attribute, value: int) -> None:
        assert attr is function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._shared = value

    def __call__(self, *args: np.void, grid=(1, 1), stream=None, block=None, shared=0, **kwargs: object) -> None:
        _needs_context("cuLaunchKernel")
        assert not kwargs
        assert block is not None
        assert stream is not None, "the default stream is never used"
        if min(*grid, *block) < 1 or int(np.prod(block)) > 1024 or grid[1] > 65535 or grid[2] > 65535:
            raise LogicError("cuLaunchKernel failed: invalid argument")
        if shared > self._shared:
            raise LogicError("cuLaunchKernel failed: invalid argument")
        assert len(args) <= 1, "arguments come packed"
        data = args[0].tobytes() if args else b""
        name, launch = self._name, _launch
        assert launch is not None

        def run() -> None:
            _machine.launches.append(name)
            launch(name, tuple(grid), tuple(block), shared, data)

        _machine.put(stream._queue, run)

    def _launch_kernel(self, grid: tuple, block: tuple, data: bytes, shared: int, stream: Stream) -> None:
        self(*([np.void(data)] if data else []), grid=grid, block=block, shared=shared, stream=stream)


class Module:
    def __init__(self) -> None:
        self._life = _life("cuModuleUnload")

    def get_function(self, name: str) -> Function:
        return Function(name)


def module_from_buffer(buffer: bytes, options: object = (), message_handler: object = None) -> Module:
    _needs_context("cuModuleLoadDataEx")
    if "module_error" in _settings:
        kind, text = _settings["module_error"]
        raise kind(text)
    return Module()


def mem_get_info() -> tuple[int, int]:
    _needs_context("cuMemGetInfo")
    return _machine.total - _machine.used, _machine.total


def _checked_view(array: np.ndarray) -> np.ndarray:
    assert isinstance(array, np.ndarray)
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)


def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream | None = None) -> None:
    _needs_context("cuMemcpyHtoDAsync")
    host, target = _checked_view(src), _machine.bytes(dest, src.nbytes)
    _machine.copies["up"] += src.nbytes
    _machine.put(stream._queue, lambda: np.copyto(target, host))


def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream | None = None) -> None:
    _needs_context("cuMemcpyDtoHAsync")
    assert dest.flags.writeable
    host, source = _checked_view(dest), _machine.bytes(src, dest.nbytes)
    host[:] = 0xFF  # until it is done, nobody may rely on what was there
    _machine.copies["down"] += dest.nbytes
    _machine.put(stream._queue, lambda: np.copyto(host, source))


def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream | None = None) -> None:
    _needs_context("cuMemcpyDtoDAsync")
    target, source = _machine.bytes(dest, size), _machine.bytes(src, size)
    _machine.copies["within"] += size
    _machine.put(stream._queue, lambda: np.copyto(target, source))


def memset_d8_async(dest: int, data: int, size: int, stream: Stream | None = None) -> None:
    _needs_context("cuMemsetD8Async")
    target = _machine.bytes(dest, size)
    _machine.put(stream._queue, lambda: target.fill(data))


class _Pool:
    """Bins of sizes that agree in their five leading bits, as in PyCUDA's mempool.hpp."""

    def __init__(self) -> None:
        self._held: dict[int, list[int]] = defaultdict(list)
        self.managed_bytes = self.active_bytes = self.active_blocks = self.held_blocks = 0

    def alloc_size(self, bin: int) -> int:
        return bin

    def bin_number(self, size: int) -> int:
        shift = max(size.bit_length() - 5, 0)
        return (((size >> shift) + 1) << shift) - 1

    def _take(self, size: int) -> int:
        block = self.bin_number(size)
        if self._held[block]:
            address = self._held[block].pop()
            self.held_blocks -= 1
            self._again(address, block)
        else:
            try:
                address = self._new(block)
            except OutOfMemory:
                self.free_held()
                try:
                    address = self._new(block)
                except OutOfMemory:
                    text = "memory_pool::allocate failed: out of memory - failed to free memory for allocation"
                    raise MemoryError(text) from None
            self.managed_bytes += block
        self.active_bytes += size
        self.active_blocks += 1
        return address

    def _give_back(self, address: int, size: int) -> None:
        self._held[self.bin_number(size)].append(address)
        self.held_blocks += 1
        self.active_blocks -= 1
        self.active_bytes -= size

    def free_held(self) -> None:
        for block, addresses in self._held.items():
            for address in addresses:
                self._release(address)
                self.managed_bytes -= block
            addresses.clear()
        self.held_blocks = 0

    def stop_holding(self) -> None:
        self.free_held()


class DeviceMemoryPool(_Pool):
    def __init__(self) -> None:
        super().__init__()
        self._machine = _machine

    def _new(self, size: int) -> int:
        _unsafe("cuMemAlloc")
        limit = _settings.get("largest_block")
        if limit is not None and size > limit:
            raise OutOfMemory
        return self._machine.allocate(size)

    def _again(self, address: int, size: int) -> None:
        self._machine.poison(address)

    def _release(self, address: int) -> None:
        self._machine.free(address)

    def allocate(self, size: int) -> "PooledDeviceAllocation":
        assert size > 0, "mempool.hpp cannot take the logarithm of 0"
        _needs_context("cuMemAlloc")
        return PooledDeviceAllocation(self, self._take(size), size)


class PooledDeviceAllocation:
    def __init__(self, pool: DeviceMemoryPool, address: int, size: int):
        self._address = address
        self._life = _life("cuMemFree", pool._give_back, address, size)

    def __int__(self) -> int:
        return self._address

    def __index__(self) -> int:
        return self._address


class PageLockedMemoryPool(_Pool):
    def __init__(self) -> None:
        super().__init__()
        self._blocks: dict[int, np.ndarray] = {}
        self._numbers = itertools.count(1)

    def _new(self, size: int) -> int:
        number = next(self._numbers)
        self._blocks[number] = np.full(size, 0xFF, np.uint8)
        return number

    def _again(self, address: int, size: int) -> None:
        self._blocks[address][:] = 0xFF

    def _release(self, address: int) -> None:
        del self._blocks[address]

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype, order: str = "C") -> np.ndarray:
        _needs_context("cuMemHostAlloc")
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        number = self._take(size)
        # As in PyCUDA, the array's base is an object of its own, whose end gives the memory back.
        base = (ctypes.c_uint8 * size).from_buffer(self._blocks[number])
        base.life = _life("cuMemFreeHost", self._give_back, number, size)
        return np.frombuffer(base, dtype).reshape(shape)


# cuda.bindings.driver


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


def cuStreamBeginCapture(hStream: int, mode: CUstreamCaptureMode) -> tuple[CUresult]:
    assert mode is CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    begin_capture(hStream, mode)
    return (CUresult.CUDA_SUCCESS,)


def cuStreamEndCapture(hStream: int) -> tuple[CUresult, list]:
    queue = _machine.queues[hStream]
    captured, queue.captured = queue.captured, None
    status = CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED if queue.invalidated else CUresult.CUDA_SUCCESS
    return status, captured


def cuGraphInstantiate(hGraph: list, flags: int) -> tuple[CUresult, list]:
    return CUresult.CUDA_SUCCESS, list(hGraph)


def cuGraphLaunch(hGraphExec: list, hStream: int) -> tuple[CUresult]:
    for work in hGraphExec:
        _machine._put(_machine.queues[hStream], work)
    return (CUresult.CUDA_SUCCESS,)


def cuGraphExecDestroy(hGraphExec: list) -> tuple[CUresult]:
    if not _stack():
        _faults.append("cuGraphExecDestroy without a current context")
    hGraphExec.clear()
    return (CUresult.CUDA_SUCCESS,)


def cuGraphDestroy(hGraph: list) -> tuple[CUresult]:
    return (CUresult.CUDA_SUCCESS,)


@contextlib.contextmanager
def installed(machine: Machine, launch: Launch | None = None, **settings: object):
    """While this lasts, `import pycuda.driver` gives the emulation of `machine`.

    `launch(name, grid, block, shared_bytes, arguments)` runs a kernel. Settings: no_device, count, driver_version,
    module_error (class, text), largest_block (bytes; larger ones are out of memory).
    """
    global _machine, _launch
    from vocabseg.runtime.cuda import device as cuda
    from vocabseg.runtime.cuda import driver

    this = sys.modules[__name__]
    left = getattr(sys.modules.get("cuda.bindings"), "driver", None)
    assert left is not this, "a test before this one has left the emulation of cuda.bindings behind"
    with pytest.MonkeyPatch.context() as patch:
        _machine, _launch = machine, launch
        _settings.clear()
        _faults.clear()
        _settings.update(settings)
        for name, contents in (("pycuda", None), ("pycuda.driver", this), ("cuda.bindings.driver", this)):
            module = contents or types.ModuleType(name)
            if contents is None:
                module.__spec__ = ModuleSpec(name, None)
                module.driver = this
            patch.setitem(sys.modules, name, module)
        bindings = types.ModuleType("cuda.bindings")
        bindings.driver = this
        patch.setitem(sys.modules, "cuda.bindings", bindings)
        patch.setattr(cuda, "_devices", {})
        patch.setattr(driver, "_exchange", lambda: _exchange_mode)
        yield this
        assert not _stack(), "a context was pushed and not popped"
        assert not _faults, _faults


def machine() -> Machine:
    """The machine in use."""
    return _machine


def settings() -> dict[str, object]:
    """The settings of the emulation in use; they may be changed."""
    return _settings
