"""A Ray of this run alone, on this machine: strangers cannot reach it, and it ends with the run, as the run with it.

Whoever reaches a Ray's ports can run code in it. So its processes listen on the loopback address only, and a key that
is drawn for the run, and that they inherit, is asked of everyone who calls; the other users of a machine share its
loopback.
"""

import contextlib
import os
import secrets
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from vocabseg.runtime.errors import EngineError

REAPER = Path(__file__).with_name("reaper.py")
# Without these Ray is of no use; it notices their death late (a minute), and then ends this process without a word.
VITAL = ("gcs_server", "raylet")


@cache
def _key() -> str:
    """One key for all Rays of this process: Ray reads it once, so that a second one would not be obeyed."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def private() -> Iterator[dict[str, Any]]:
    """The options of `ray.init` for a private Ray; its variables are set before Ray is imported, and set back after.

    The first variable is called after the systems on which Ray listens on the loopback address by default; without it
    it replaces 127.0.0.1 by the machine's address, and its parts listen on all of them. Raises EngineError where the
    program has imported Ray before, which then reads none of them any more.
    """
    if "ray" in sys.modules and not _key.cache_info().currsize:
        raise EngineError(
            "this program has imported Ray already, and a Ray that it starts now would be open to the network: run "
            "`vocabseg batch` as a command of its own, or give --ray-address"
        )
    variables = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _key(),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def tied() -> Iterator[threading.Event]:
    """Ties the Ray that this process has just started to it; a Linux without pidfd, or another system, has no ties.

    If this process is killed, a process of its own ends Ray's processes, some of which would live on for a minute or
    more. If one of Ray's vital processes dies before the event is set, this process says so in a line and ends with
    code 2: nothing can be done any more, and Ray's own end of it would come a minute later, silently.
    """
    ending = threading.Event()
    if not hasattr(os, "pidfd_open"):
        yield ending
        return
    import psutil  # Ray brings it along

    processes = psutil.Process().children(recursive=True)
    vital = {os.pidfd_open(one.pid): one.name() for one in processes if one.name() in VITAL}
    threading.Thread(target=_end_with, args=(vital, ending), name="ray", daemon=True).start()
    command = [sys.executable, "-I", "-S", str(REAPER), *(str(one.pid) for one in processes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield ending


def _end_with(vital: dict[int, str], ending: threading.Event) -> None:
    poll = select.poll()
    for handle in vital:
        poll.register(handle, select.POLLIN)
    handle = poll.poll()[0][0]
    if not ending.is_set():
        shown = "\r\x1b[K\x1b[?25h" if sys.stderr.isatty() else ""  # in place of a progress bar, which hides the cursor
        reason = f"Ray's process {vital[handle]} has died: run the command again, what is committed stays"
        print(f"{shown}vocabseg: {reason}", file=sys.stderr, flush=True)
        os._exit(2)
