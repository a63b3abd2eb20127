"""Streams and events of a device, and sequences of work captured from a stream (CUDA graphs).

PyCUDA has no graphs, so they use cuda.bindings on the same stream handle.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.driver import FATAL, FATAL_HINT, OUT_OF_MEMORY, checked
from vocabseg.runtime.cuda.memory import Owned
from vocabseg.runtime.errors import DeviceMemoryError, EngineError

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.device import Device

# Failed captures in a row after which work is not captured any more; a single one may be chance, such as full memory.
CAPTURE_ATTEMPTS = 3
# Calls of the driver in order, with all arguments but the last, the stream: to hold it could free it at a wrong time.
Submissions = list[tuple[Callable[..., Any], tuple[Any, ...]]]
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, nor the default stream for it


class Stream(Owned):
    """Work that runs in order on a device, concurrently with other streams."""

    def __init__(self, device: "Device"):
        with device.activate():
            super().__init__(device, checked(device.driver.Stream, NON_BLOCKING))
        self.handle = int(self.raw.handle)
        self._record: Submissions | None = None

    def synchronize(self) -> None:
        """Wait until everything on this stream is done."""
        self.device.call(self.raw.synchronize)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function of the driver that enqueues a kernel, a copy or a fill; its last argument is this stream."""
        if self._record is not None:
            self._record.append((function, arguments))
        self.device.call(function, *arguments, self.raw)

    def recorded(self, work: Callable[[], Any]) -> Submissions:
        """Do `work`, and return what it enqueued on this stream: kernels, copies and fills, by their addresses.

        Events, and waits for other streams, are no part of it. One thread at a time, as the caller sees to.
        """
        calls: Submissions = []
        self._record = calls
        try:
            work()
        finally:
            self._record = None
        return calls

    def replay(self, submissions: Submissions) -> None:
        """Enqueue again what `recorded` returned; it costs the host no more than the calls themselves."""
        self.device.call(_each, submissions, self.raw)

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        """Copy host memory of the same size to the device; `source`, ideally pinned, must not change until then."""
        _same_size(target.nbytes, source.nbytes)
        if source.nbytes:
            self.submit(self.device.driver.memcpy_htod_async, target.pointer, _bytes(source))

    def download(self, target: np.ndarray, source: DeviceArray) -> None:
        """Copy device memory of the same size to the host; `target`, ideally pinned, is valid once it is done."""
        _same_size(target.nbytes, source.nbytes)
        if target.nbytes:
            self.submit(self.device.driver.memcpy_dtoh_async, _bytes(target), source.pointer)

    def downloaded(self, arrays: Sequence[DeviceArray]) -> list[np.ndarray]:
        """Pinned arrays that are valid once what `Device.together` returned has been copied to them, in one piece."""
        first, last = arrays[0], arrays[-1]
        whole = DeviceArray(
            self.device, (last.pointer + last.nbytes - first.pointer,), np.uint8, first.pointer, first.owner
        )
        host = self.device.pinned(whole.shape, np.uint8)
        self.download(host, whole)
        places = [array.pointer - first.pointer for array in arrays]
        return [
            host[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
            for place, array in zip(places, arrays, strict=True)
        ]

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Copy within the device; both have the same size in bytes."""
        _same_size(target.nbytes, source.nbytes)
        if target.nbytes:
            self.submit(self.device.driver.memcpy_dtod_async, target.pointer, source.pointer, target.nbytes)

    def fill(self, target: DeviceArray, byte: int) -> None:
        """Set every byte."""
        if target.nbytes:
            self.submit(self.device.driver.memset_d8_async, target.pointer, byte, target.nbytes)

    def record(self) -> "Event":
        """An event that is reached when all work enqueued on this stream so far is done."""
        event = Event(self.device)
        self.device.call(event.raw.record, self.raw)
        return event

    def wait(self, event: "Event") -> None:
        """Make subsequent work on this stream wait for `event`; the host does not wait."""
        self.device.call(self.raw.wait_for_event, event.raw)

    def capture(self, work: Callable[[], Any]) -> "Graph | None":
        """Capture what `work` enqueues on this stream as a graph that can be launched repeatedly; it does not run now.

        None if it cannot be captured: without the package cuda.bindings, or if `work` does something that graphs do not
        support. `work` must not allocate, nor wait for what other streams did before: it should have run here once.
        """
        try:
            from cuda.bindings import driver
        except ImportError as error:
            _warn_once(f"CUDA graphs are not used ({error}): pip install cuda-bindings")
            return None
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self.device.activate():
            _bound(driver.cuStreamBeginCapture, self.handle, mode)
            failed = True
            try:
                work()
                failed = False
            except EngineError:
                pass  # the eager run reports it, if it fails there, too
            finally:
                status, captured = driver.cuStreamEndCapture(self.handle)
            if failed or int(status) != 0:
                if int(status) == 0:
                    _bound(driver.cuGraphDestroy, captured)
                return None
            try:
                return Graph(self.device, driver, _bound(driver.cuGraphInstantiate, captured, 0))
            finally:
                _bound(driver.cuGraphDestroy, captured)


class Event:
    """A point on a stream; made by `Stream.record`."""

    __slots__ = ("device", "raw")

    def __init__(self, device: "Device"):
        self.device = device
        try:
            self.raw = device.spare_events.pop()
        except IndexError:
            self.raw = device.call(device.driver.Event)

    def __del__(self) -> None:
        if hasattr(self, "raw"):
            self.device.spare_events.append(self.raw)  # never freed at the end of the process

    def synchronize(self) -> None:
        """Wait until it is reached."""
        self.device.call(self.raw.synchronize)

    def query(self) -> bool:
        """Whether it is reached."""
        return bool(self.device.call(self.raw.query))

    def elapsed_since(self, other: "Event") -> float:
        """Milliseconds between two events that have both been reached."""
        return float(self.device.call(self.raw.time_since, other.raw))


class Graph:
    """Captured work; the arrays it uses must live as long as it does."""

    def __init__(self, device: "Device", driver: Any, executable: Any):
        self.device = device
        self._driver, self._executable = driver, executable

    def launch(self, stream: Stream) -> None:
        """Run the captured work on `stream`."""
        with self.device.activate():
            _bound(self._driver.cuGraphLaunch, self._executable, stream.handle)

    def close(self) -> None:
        """Free the graph."""
        executable, self._executable = self._executable, None
        if executable is not None:
            with self.device.activate():
                _bound(self._driver.cuGraphExecDestroy, executable)

    def __del__(self) -> None:
        if self.__dict__.get("_executable") is not None and not self.device.closed:
            self.close()


def _bound(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of cuda.bindings, which returns its status first; raises EngineError unless it is success.

    Raises DeviceMemoryError, which is an EngineError, if memory runs out.
    """
    status, *values = function(*arguments)
    if int(status) != 0:
        text = f"CUDA {function.__name__} failed: {getattr(status, 'name', status)}"
        if int(status) == OUT_OF_MEMORY:
            raise DeviceMemoryError(f"the GPU is out of memory ({text}): use smaller images or free its memory")
        raise EngineError(text + (FATAL_HINT if int(status) in FATAL else ""))
    return values[0] if values else None


def _bytes(array: np.ndarray) -> np.ndarray:
    """The array's memory as bytes: PyCUDA rejects dtypes that the buffer protocol lacks."""
    if not array.flags.c_contiguous:
        raise ValueError("only contiguous arrays can be copied from or to a device")
    return array.reshape(-1).view(np.uint8)


def _each(submissions: Submissions, stream: Any) -> None:
    for function, arguments in submissions:
        function(*arguments, stream)


def _same_size(target: int, source: int) -> None:
    if target != source:
        raise ValueError(f"{source} bytes do not fit an array of {target} bytes")


def _warn_once(text: str, warned: set[str] = set()) -> None:  # noqa: B006 - meant to be kept
    if text not in warned:
        warned.add(text)
        warnings.warn(text, RuntimeWarning, stacklevel=3)
