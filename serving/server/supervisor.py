"""Supervisor: keeps a server running, and restarts it when it, or one of its model processes, dies."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vocabseg.runtime.errors import EngineError
from vocabseg.serving.server.process_table import alive
from vocabseg.serving.server.triton_server import SHARED_MEMORY, Ports, TritonServer, start

# Temporary folders are called this, then the process's number.
SCRATCH = "vocabseg-serve-"
# Starts in a row that fail have a cause that one more does not remove: it gives up. (A server that gets ready is always
# replaced: requests can kill Triton 2.51, and whoever sends some more of them must not end the service.)
STARTS = 5
PAUSE = 1.0
LOOK = 0.2


@dataclass
class Supervisor:
    """Keeps a server running, always at the same addresses.

    `folder` holds the repository "models" and takes the server's own files.
    """

    environment: Path
    folder: Path
    model: str
    host: str
    ports: Ports
    verbose: bool
    patience: float  # seconds until the server must be ready
    server: TritonServer | None = None

    def start(self) -> TritonServer:
        """The server, ready; raises EngineError if it is not in time."""
        own = Path(tempfile.mkdtemp(dir=self.folder, prefix="server-"))
        models = self.folder / "models"
        self.server = start(self.environment, models, self.model, own, self.host, self.ports, self.verbose)
        self.ports = self.server.ports
        self.server.wait_until_ready(self.patience)
        return self.server

    def watch(self, notify: Callable[[str], None]) -> None:
        """Never returns; raises EngineError when restarting does not help."""
        while True:
            time.sleep(LOOK)
            server = self.server
            if server is None or server.healthy():
                continue
            ended = server.process.poll()
            reason = "a model process has died"
            if ended is not None:
                reason = f"the server ended with code {ended} ({server.last_error()})"
            notify(f"Restarting: {reason}")
            server.stop()
            self._start_again()
            notify("Ready again")

    def _start_again(self) -> None:
        for left in reversed(range(STARTS)):
            try:
                self.start()
                return
            except EngineError:
                self.stop()
                if not left:
                    raise
                time.sleep(PAUSE)

    def stop(self) -> None:
        """Stop the server; requests that it has accepted are answered."""
        if self.server is not None:
            self.server.stop()


def sweep() -> None:
    """Remove what supervisors that were killed have left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
        owner = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if owner.isdecimal() and not alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
            for region in SHARED_MEMORY.glob(f"vocabseg-{owner}-*"):
                region.unlink(missing_ok=True)
