"""Scratch memory that the execution contexts of several TensorRT graphs share."""

import threading
import weakref

import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Stream

# TensorRT asks for addresses that are multiples of it.
ALIGNMENT = 256
# Each growth makes the CUDA graphs captured before it useless, so it goes in steps.
STEP = 16 << 20


_shared: "weakref.WeakKeyDictionary[Device, SharedScratch]" = weakref.WeakKeyDictionary()


def scratch_of(device: Device) -> "SharedScratch":
    """The scratch memory that all TensorRT graphs of a device share in this process."""
    if device not in _shared:
        _shared[device] = SharedScratch(device)
    return _shared[device]


class Block:
    """The scratch memory of one stream. What runs on a stream runs in order, so all contexts there may have it.

    Attributes: pointer, size, and generation, which counts how often the memory was replaced: what was captured with an
    older number holds an address that is no longer ours.
    """

    def __init__(self, stream: Stream):
        self.stream = stream  # kept, so that its handle never becomes another stream's
        self.pointer = self.size = self.generation = 0
        self._memory: DeviceArray | None = None

    def reserve(self, device: Device, size: int) -> None:
        """Have at least `size` bytes; raises DeviceMemoryError, and then has none."""
        if size <= self.size and self._memory is not None:
            return
        self.free()
        rounded = max(-(-size // STEP), 1) * STEP
        self._memory = device.empty((rounded + ALIGNMENT,), np.uint8)
        self.pointer = -(-self._memory.pointer // ALIGNMENT) * ALIGNMENT
        self.size = rounded

    def free(self) -> None:
        """Give the memory back once nothing uses it any more."""
        if self._memory is not None:
            self.stream.synchronize()
            self._memory = None
        self.pointer = self.size = 0
        self.generation += 1


class SharedScratch:
    """A block for each stream of a device, as large as the largest need there so far.

    `lock` is held by whoever enqueues work that uses a block.
    """

    def __init__(self, device: Device):
        self.lock = threading.RLock()
        self.device = device
        self._blocks: dict[int, Block] = {}

    def block(self, size: int, stream: Stream) -> Block:
        """The block for work that is enqueued on `stream`, with at least `size` bytes; raises DeviceMemoryError."""
        if stream.handle not in self._blocks:
            self._blocks[stream.handle] = Block(stream)
        block = self._blocks[stream.handle]
        block.reserve(self.device, size)
        return block

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self._blocks.values())

    def close(self) -> None:
        """Wait for the work and give all memory back; it is taken anew when it is needed again."""
        with self.lock:
            for block in self._blocks.values():
                block.free()
            self._blocks.clear()
