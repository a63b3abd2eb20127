"""A GPU that is not there: memory, streams and events on the host, where a missing wait gives a wrong result.

Work on a stream is queued. By default it runs only when somebody waits for it, and then no more than what that wait
needs, so a stream that should have waited for another reads memory that nothing has been written to. Fresh memory is
full of 0xFF: not-a-number in every float type, and -1. With a seed, the streams take turns at random instead, so that
buffers are also overwritten before a forgotten reader came to them.
"""

import bisect
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

POISON = 0xFF
ALIGNMENT = 256


class OutOfMemory(Exception):
    """More memory was asked for than the machine has."""


@dataclass(eq=False)
class Queue:
    """A stream: what was put on it and has not run."""

    handle: int
    waiting: deque[Callable[[], bool]] = field(default_factory=deque)  # each returns whether it could run
    started: int = 0  # operations ever put on it
    done: int = 0  # of those, how many have run
    captured: list[Callable[[], bool]] | None = None
    capture: tuple[int, int] = (0, 0)  # its mode, and the thread that began it
    invalidated: bool = False


@dataclass(eq=False)
class Mark:
    """What an event was last recorded as: reached when `queue` has done `place` operations."""

    queue: Queue
    place: int

    @property
    def reached(self) -> bool:
        return self.queue.done >= self.place


class Machine:
    """One emulated GPU with `memory` bytes; `seed` None runs work as late as possible, a number interleaves streams."""

    def __init__(self, memory: int = 2**31, seed: int | None = None):
        self.total = memory
        self.used = 0
        self.largest = 0
        self.chance = None if seed is None else random.Random(seed)
        self.queues: dict[int, Queue] = {}
        self.launches: list[str] = []
        self.copies = {"up": 0, "down": 0, "within": 0}
        self._blocks: dict[int, np.ndarray] = {}
        self._starts: list[int] = []
        self._lock = threading.RLock()

    # Memory

    def allocate(self, size: int) -> int:
        """The address of fresh memory; raises OutOfMemory."""
        with self._lock:
            if self.used + size > self.total:
                raise OutOfMemory
            block = np.full(size + ALIGNMENT, POISON, np.uint8)
            address = -(-block.ctypes.data // ALIGNMENT) * ALIGNMENT
            self._blocks[address] = block[address - block.ctypes.data :][:size]
            bisect.insort(self._starts, address)
            self.used += size
            self.largest = max(self.largest, self.used)
            return address

    def free(self, address: int) -> None:
        with self._lock:
            block = self._blocks.pop(address)
            self._starts.remove(address)
            self.used -= len(block)

    def poison(self, address: int) -> None:
        """What a block holds that is handed out again."""
        self._blocks[address][:] = POISON

    def bytes(self, address: int, size: int) -> np.ndarray:
        """Memory as bytes; raises IndexError for what was not allocated."""
        with self._lock:
            place = bisect.bisect_right(self._starts, address) - 1
            start = self._starts[place] if place >= 0 else 0
            block = self._blocks.get(start)
            if block is None or address + size > start + len(block):
                raise IndexError(f"illegal address: {size} bytes at {address:#x}")
            return block[address - start : address - start + size]

    # Streams

    def stream(self) -> Queue:
        with self._lock:
            handle = len(self.queues) + 16
            self.queues[handle] = Queue(handle)
            return self.queues[handle]

    def put(self, queue: Queue, work: Callable[[], object]) -> None:
        """Queue work on a stream."""
        self._put(queue, lambda: (work(), True)[1])

    def record(self, queue: Queue) -> Mark:
        """A mark behind everything that is on the stream now."""
        with self._lock:
            return Mark(queue, queue.started)

    def wait(self, queue: Queue, mark: Mark) -> None:
        """Let what follows on the stream run only once the mark is reached."""
        with self._lock:
            self._put(queue, lambda: mark.reached or self._advance(mark))

    def reach(self, mark: Mark) -> None:
        """Run what is needed until the mark is reached."""
        with self._lock:
            while not mark.reached:
                self._step(mark)

    def synchronize(self) -> None:
        """Run everything."""
        for queue in list(self.queues.values()):
            self.reach(self.record(queue))

    def _put(self, queue: Queue, work: Callable[[], bool]) -> None:
        with self._lock:
            if queue.captured is not None:
                queue.captured.append(work)
                return
            queue.waiting.append(work)
            queue.started += 1
            while self.chance is not None and self.chance.random() < 0.5:
                if not self._random_step():
                    break

    def _step(self, mark: Mark) -> None:
        if self.chance is None:
            if not self._head(mark.queue):
                raise RuntimeError("a stream waits for itself")
        elif not self._random_step() and not self._head(mark.queue):
            raise RuntimeError("streams wait for each other")

    def _advance(self, mark: Mark) -> bool:
        """A wait that has come to the head of its stream: late, what it waits for runs now; else it is tried again."""
        if self.chance is None:
            self.reach(mark)
        return mark.reached

    def _random_step(self) -> bool:
        ready = [queue for queue in self.queues.values() if queue.waiting]
        self.chance.shuffle(ready)
        return any(self._head(queue) for queue in ready)

    def _head(self, queue: Queue) -> bool:
        if not queue.waiting:
            return False
        work = queue.waiting[0]
        if not work():
            return False
        queue.waiting.popleft()
        queue.done += 1
        return True
