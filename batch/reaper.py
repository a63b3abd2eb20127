"""A process that outlives its parent for a moment: it then kills the processes whose numbers it was given.

It runs as a script of its own, of the standard library alone. The parent holds the other end of its standard input,
which the system closes when the parent ends, however that happens.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    handles = []
    for pid in map(int, sys.argv[1:]):
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))  # names this very process, also when its number is used again
    sys.stdin.buffer.read()
    for handle in handles:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)


if __name__ == "__main__":
    main()
