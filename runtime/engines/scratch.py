"""Scratch memory that the execution contexts of several TensorRT graphs share."""

import threading

import numpy as np

from vocabseg.runtime.engines.on_device import Array, Device, Stream

# TensorRT asks for addresses that are multiples of it.
ALIGNMENT = 256
# Each growth makes the CUDA graphs captured before it useless, so it goes in steps.
STEP = 16 << 20


class SharedScratch:
    """Device memory for activations, as large as the largest need so far; executions that use it never overlap.

    Contexts of several graphs may have it at the same time because their executions are ordered: on one stream by
    themselves, and on several by an event that the next stream waits for. Hold `lock` from `reserve` to `used_by`.
    """

    def __init__(self, device: Device):
        self.lock = threading.RLock()
        self.size = 0
        self.pointer = 0
        # Counts the growths: what was captured with an older number holds an address that is no longer ours.
        self.generation = 0
        self._device = device
        self._memory: Array | None = None
        self._last: Stream | None = None

    def reserve(self, size: int, stream: Stream) -> None:
        """Make at least `size` bytes ready for work that is enqueued on `stream` from now on.

        Raises what the device raises when its memory does not suffice; then the old memory is still there.
        """
        if size > self.size or self._memory is None:
            rounded = max(-(-size // STEP), 1) * STEP
            self.wait()  # nothing may use the old memory when it is given back
            memory: Array = self._device.empty((rounded + ALIGNMENT,), np.uint8)
            self._memory, self.size = memory, rounded
            self.pointer = -(-memory.pointer // ALIGNMENT) * ALIGNMENT
            self.generation += 1
        if self._last is not None and self._last.handle != stream.handle:
            stream.wait(self._last.record())

    def used_by(self, stream: Stream) -> None:
        """Say that work which uses the memory was enqueued on `stream`."""
        self._last = stream

    def close(self) -> None:
        """Wait for the work and give the memory back; it is taken anew when it is needed again."""
        with self.lock:
            self.wait()
            self._memory, self.size, self.pointer, self._last = None, 0, 0, None

    def wait(self) -> None:
        """Until the work that used the memory last has ended."""
        if self._last is not None:
            self._last.synchronize()
