"""What the kernels keep on a device between launches: Pillow's weights for pairs of sizes, and workspaces."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vocabseg.runtime.kernels.device import launch
from vocabseg.runtime.kernels.device.launch import Packed, packed

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.arrays import DeviceArray
    from vocabseg.runtime.cuda.device import Device
    from vocabseg.runtime.cuda.streams import Event, Stream

# Tables are kept for this many pairs of sizes: 10 KB each for a typical image.
TABLES = 256


class _Table(NamedTuple):
    struct: Packed
    spans: "DeviceArray"
    weights: "DeviceArray"
    ready: "Event"
    streams: set[int]  # handles of the streams that wait for it


class ResizeTables:
    """The weights of Pillow's resize along one axis, by pair of sizes, computed on the device when first needed."""

    def __init__(self, device: "Device", run: Callable[..., None]):
        """`run` launches a kernel: name, launch, arguments, stream."""
        self._device, self._run = device, run
        self._tables: OrderedDict[tuple[int, int], _Table] = OrderedDict()
        self._lock = threading.Lock()
        self.replaced = self.made = 0  # how often tables were freed, and computed

    def get(self, in_size: int, out_size: int, stream: "Stream") -> Packed:
        """The RESIZE_TABLE that maps in_size pixels to out_size, ready for subsequent work on `stream`."""
        with self._lock:
            table = self._tables.get((in_size, out_size))
            if table is None:
                table = self._tables[in_size, out_size] = self._compute(in_size, out_size, stream)
            else:
                self._tables.move_to_end((in_size, out_size))
                if stream.handle not in table.streams:
                    stream.wait(table.ready)
                    table.streams.add(stream.handle)
            return table.struct

    def _compute(self, in_size: int, out_size: int, stream: "Stream") -> _Table:
        if len(self._tables) >= TABLES:
            self._device.synchronize()  # kernels may still read them
            for _ in range(TABLES // 2):
                self._tables.popitem(last=False)
            self.replaced += 1
        self.made += 1
        capacity = launch.triangle_capacity(in_size, out_size)
        spans = self._device.empty((out_size, 2), np.int32)
        weights = self._device.empty((out_size, capacity), np.int32)
        arguments = [np.int32(in_size), np.int32(out_size), np.int32(capacity), spans, weights]
        self._run("resize_table", launch.threads(out_size), arguments, stream)
        struct = packed(launch.RESIZE_TABLE, spans=spans.pointer, weights=weights.pointer, capacity=capacity)
        return _Table(struct, spans, weights, stream.record(), {stream.handle})


class Workspaces:
    """Scratch memory of kernels, one block per stream."""

    def __init__(self, device: "Device"):
        self._device = device
        self._blocks: dict[int, DeviceArray] = {}
        self._lock = threading.Lock()
        self.replaced = self.made = 0  # how often a block was replaced, and allocated

    def get(self, size: int, stream: "Stream") -> "DeviceArray":
        """At least `size` bytes that only this stream uses."""
        with self._lock:
            memory = self._blocks.get(stream.handle)
            if memory is None or memory.nbytes < size:
                if memory is not None:
                    stream.synchronize()  # work there still uses the smaller one
                    self.replaced += 1
                self.made += 1
                memory = self._blocks[stream.handle] = self._device.empty((max(2 * size, 2**18),), np.uint8)
            return memory
