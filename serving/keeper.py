"""Keeper: a server that is started again when it, or a model process of it, dies."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vocabseg.runtime.errors import EngineError
from vocabseg.serving.processes import alive
from vocabseg.serving.server import SHARED_MEMORY, Ports, Server, start

# Temporary folders are called so, then the process's number.
SCRATCH = "vocabseg-serve-"
# Deaths within so many seconds after which it is given up: something is wrong then that a new start does not mend.
DEATHS = 5
WITHIN = 60.0
LOOK = 0.2


class Keeper:
    """Keeps a server running, always at the same addresses."""

    def __init__(self, environment: Path, folder: Path, model: str, host: str, ports: Ports, verbose: bool):
        """`folder` holds the repository "models" and takes the server's own files."""
        self._environment = environment
        self._folder = folder
        self._model = model
        self._host = host
        self._ports = ports
        self._verbose = verbose
        self._patience = 0.0
        self._server: Server | None = None

    def start(self, seconds: float) -> Server:
        """The server, ready; raises EngineError where it is not within so many seconds."""
        self._patience = seconds
        own = Path(tempfile.mkdtemp(dir=self._folder, prefix="server-"))
        models = self._folder / "models"
        self._server = start(self._environment, models, self._model, own, self._host, self._ports, self._verbose)
        self._ports = self._server.ports
        self._server.wait_until_ready(seconds)
        return self._server

    def keep(self, tell: Callable[[str], None]) -> None:
        """Returns never; raises EngineError when starting again does not help."""
        deaths: list[float] = []
        while True:
            time.sleep(LOOK)
            server = self._server
            if server is None or server.healthy():
                continue
            ended = server.process.poll()
            reason = "a model process has died" if ended is None else f"the server ended with code {ended}"
            if ended is not None:
                reason += f" ({server.last_error()})"
            deaths = [moment for moment in deaths if time.monotonic() - moment < WITHIN] + [time.monotonic()]
            if len(deaths) > DEATHS:
                raise EngineError(f"{reason}, for the {len(deaths)}th time within a minute: see --verbose")
            tell(f"Starting again: {reason}")
            server.stop()
            self.start(self._patience)
            tell("Ready again")

    def stop(self) -> None:
        """Stop the server; what it has taken is answered."""
        if self._server is not None:
            self._server.stop()


def sweep() -> None:
    """Remove what keepers that were killed have left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
        owner = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if owner.isdecimal() and not alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
            for region in SHARED_MEMORY.glob(f"vocabseg-{owner}-*"):
                region.unlink(missing_ok=True)
