"""Memory of the pipeline on a GPU: buffers with stable addresses, and arrays of images kept for later queries."""

import math
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Event, Stream

# Bytes that finished images may keep on the device; beyond that, the oldest moves to the host.
STORED_BYTES = 512 << 20
# Most pieces of work in flight whose memory is held, before the host waits for the oldest.
MOST_IN_FLIGHT = 64
# Arrays that a set of buffers hands out again as they are.
MOST_ARRAYS = 64


class Buffers:
    """Named blocks of memory that grow when a larger array is requested, and otherwise keep their address.

    `settle` is called before a block is freed: it waits until nothing uses the block any more.
    """

    def __init__(self, device: Device, settle: Callable[[], None]):
        self._device, self._settle = device, settle
        self._blocks: dict[str, DeviceArray] = {}
        self._arrays: dict[tuple[str, tuple[int, ...], Any], DeviceArray] = {}  # handed out before
        self._pinned: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: Sequence[int], dtype: Any, fill: Stream | None = None) -> DeviceArray:
        """An array at the start of the block of that name; with `fill`, a new block is zeroed on that stream."""
        key = (name, tuple(shape), dtype)
        known = self._arrays.get(key)
        if known is not None:
            return known
        size = math.prod(shape) * np.dtype(dtype).itemsize
        block = self._blocks.get(name)
        if block is None or block.nbytes < size:
            self._arrays.clear()
            if block is not None:
                self._settle()
            self._blocks.pop(name, None)
            block = None  # freed before the larger one is allocated
            block = self._blocks[name] = self._device.empty((max(size, 1),), np.uint8)
            if fill is not None:
                fill.fill(block, 0)
        if len(self._arrays) >= MOST_ARRAYS:
            self._arrays.clear()
        found = self._arrays[key] = DeviceArray(self._device, shape, dtype, block.pointer, block.owner)
        return found

    def pinned(self, name: str, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """The same in page-locked host memory."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._pinned or self._pinned[name].nbytes < size:
            self._settle()
            self._pinned.pop(name, None)
            self._pinned[name] = self._device.pinned((max(size, 1),), np.uint8)
        return self._pinned[name][:size].view(dtype).reshape(shape)

    def clear(self) -> None:
        """Free everything."""
        self._settle()
        self._arrays.clear()
        self._blocks.clear()
        self._pinned.clear()


class InFlight:
    """Keeps the memory of started work alive until it is done."""

    def __init__(self) -> None:
        self._held: deque[tuple[Event, tuple[object, ...]]] = deque()

    def hold(self, done: Event, *things: object) -> None:
        """Keep `things` until `done`."""
        self._held.append((done, things))
        while self._held and (len(self._held) > MOST_IN_FLIGHT or self._held[0][0].query()):
            event = self._held.popleft()[0]
            event.synchronize()

    def land(self) -> None:
        """Wait for everything."""
        while self._held:
            self._held.popleft()[0].synchronize()


class StoredArrays:
    """Arrays of one image on the device, downloaded on request, and all moved to the host by `spill`.

    `ready` is reached when all of them have been computed.
    """

    def __init__(self, download: Stream, lock: "threading.RLock", ready: Event, arrays: dict[str, DeviceArray]):
        self.ready = ready
        self._download, self._lock = download, lock
        self._device = arrays
        self._host: dict[str, np.ndarray] = {}
        self.nbytes = sum(array.nbytes for array in arrays.values())  # on the device

    def __contains__(self, name: object) -> bool:
        return name in self._device or name in self._host

    def held(self) -> tuple[DeviceArray, ...]:
        """The arrays that are now on the device."""
        return tuple(self._device.values())

    def on_device(self, name: str) -> DeviceArray:
        """The array on the device, uploaded again if it was moved to the host."""
        with self._lock:
            if name not in self._device:
                host = self._host[name]
                array = self._download.device.empty(host.shape, host.dtype)
                self._download.upload(array, host)
                self._download.synchronize()
                self._device[name] = array
                self.nbytes += array.nbytes
            return self._device[name]

    def on_host(self, name: str) -> np.ndarray:
        """The array on the host, in its own dtype."""
        with self._lock:
            if name not in self._host:
                self._download.wait(self.ready)
                self._host[name] = self._device[name].to_host(self._download)
            return self._host[name]

    def spill(self) -> None:
        """Move everything to the host."""
        with self._lock:
            for name in self._device:
                self.on_host(name)
            self.ready.synchronize()
            self._device.clear()
            self.nbytes = 0


class Store:
    """Limits the device memory of stored arrays, however many of them the user keeps."""

    def __init__(self, limit: int = STORED_BYTES):
        self.limit = limit
        self._stored: OrderedDict[int, weakref.ref[StoredArrays]] = OrderedDict()

    def add(self, stored: StoredArrays) -> None:
        """Track `stored`, and spill the oldest arrays while the limit is exceeded."""
        self._stored[id(stored)] = weakref.ref(stored)
        self._stored.move_to_end(id(stored))
        alive = self._alive()
        total = sum(each.nbytes for each in alive)
        for each in alive:
            if total <= self.limit or each is stored:
                break
            total -= each.nbytes
            each.spill()
            del self._stored[id(each)]

    def spill_all(self) -> None:
        """Move everything to the host, after memory ran out."""
        for stored in self._alive():
            stored.spill()
        self._stored.clear()

    def _alive(self) -> list[StoredArrays]:
        """The oldest first; forgets what the user has dropped."""
        alive = [stored for reference in self._stored.values() if (stored := reference()) is not None]
        if len(alive) < len(self._stored):
            self._stored = OrderedDict((id(stored), weakref.ref(stored)) for stored in alive)
        return alive
