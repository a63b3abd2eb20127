"""What Linux says about the server's processes and connections."""

import os
from pathlib import Path

PROC = Path("/proc")
ESTABLISHED = "01"


def children(parent: int, name: str) -> list[int]:
    """The parent's processes whose program has this name."""
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            state, above = _state(int(entry.name))
            program = os.path.basename((entry / "cmdline").read_bytes().split(b"\0")[0]).decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if above == parent and state not in "ZX" and program == name:
            found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; one that is a zombie does not."""
    try:
        return _state(pid)[0] not in "ZX"
    except OSError:
        return False


def unsent(*ports: int) -> bool:
    """Whether a connection at one of the ports holds bytes that the other side has not received yet."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, queues, *_ = line.split()
            sending = int(queues.partition(":")[0], 16)
            if state == ESTABLISHED and sending and int(local.rpartition(":")[2], 16) in ports:
                return True
    return False


def _state(pid: int) -> tuple[str, int]:
    """State letter and parent; the program's name before them may contain blanks and parentheses."""
    state, parent, *_ = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return state, int(parent)
