"""Watchdog: ends a model process that is stuck, so that whoever supervises it starts another."""

import faulthandler


class Watchdog:
    """As a context, ends this process with code 1 once `seconds` have passed without a call of `moved`.

    The clock is a thread of faulthandler's that needs no interpreter, so native code that never returns does not stop
    it; what every thread was doing is written to standard error.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def moved(self) -> None:
        """Start the time anew."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=2)

    def __enter__(self) -> "Watchdog":
        self.moved()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
