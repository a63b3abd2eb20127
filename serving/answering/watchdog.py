"""Watchdog: ends a model process that is stuck, so that whoever supervises it starts another."""

import faulthandler
import threading
import time


class Watchdog:
    """As a context, ends this process with code 1 once a thread in it has not called `moved` for `seconds`.

    The clock is a thread of faulthandler's that needs no interpreter, so native code that never returns does not stop
    it; what every thread was doing is written to standard error.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._moves: dict[int, float] = {}  # of the threads in the context: when each moved last
        self._lock = threading.Lock()

    def moved(self) -> None:
        """Start the calling thread's time anew."""
        with self._lock:
            self._moves[threading.get_ident()] = time.monotonic()
            self._wind()

    def __enter__(self) -> "Watchdog":
        self.moved()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            del self._moves[threading.get_ident()]
            self._wind()

    def _wind(self) -> None:
        """Set the clock for the thread that has not moved for the longest time."""
        if self._moves:
            left = min(self._moves.values()) + self._seconds - time.monotonic()
            faulthandler.dump_traceback_later(max(left, 0.001), exit=True, file=2)
        else:
            faulthandler.cancel_dump_traceback_later()
