"""A tritonserver of one's own: started with a model repository, watched until it is ready, stopped with no answer lost."""

import contextlib
import ctypes
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vocabseg.runtime.errors import EngineError
from vocabseg.serving.environment import check_platform, server_binary, site_packages, write_backends
from vocabseg.serving.repository import PACKAGE_PATH

# Seconds that requests may still take once the server is told to stop.
DRAIN = 30
PR_SET_PDEATHSIG = 1


class Ports(msgspec.Struct, frozen=True):
    """Where the server listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


class Server:
    """A running tritonserver; `stop` ends it."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, host: str, ports: Ports, model: str):
        self.process = process
        self.folder = folder
        self.host = host
        self.ports = ports
        self.model = model

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "server.log"

    def urls(self) -> dict[str, str]:
        """The addresses by what they are for."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return {
            "http": f"http://{host}:{self.ports.http}",
            "grpc": f"grpc://{host}:{self.ports.grpc}",
            "metrics": f"http://{host}:{self.ports.metrics}/metrics",
        }

    def ready(self) -> bool:
        """Whether the server and the model take requests."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        connection = http.client.HTTPConnection(host, self.ports.http, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", f"/v2/models/{self.model}/ready")
            return connection.getresponse().status == 200
        return False

    def wait_until_ready(self, seconds: float) -> None:
        """Raises EngineError when the server ends, or is not ready after so many seconds."""
        end = time.monotonic() + seconds
        while not self.ready():
            if self.process.poll() is not None:
                raise EngineError(f"the server ended with code {self.process.returncode}: {self.last_error()}")
            if time.monotonic() > end:
                raise EngineError(f"the server is not ready after {seconds:g} s: {self.last_error()}")
            time.sleep(0.1)

    def last_error(self) -> str:
        """The error that the server told last, on one line."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        # An error begins with E and the date (E1124); before its message stands the source line, ending in "]".
        errors = [line.partition("] ")[2].strip('"') for line in lines if re.match(r"E\d{4} ", line)]
        errors = [error for error in errors if "CudaDriverHelper" not in error]  # told on every machine without a GPU
        return errors[-1] if errors else "it told no error; see --verbose"

    def terminate(self) -> None:
        """Let it answer what it has taken, take nothing more, and end; returns at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self, seconds: float = DRAIN + 10) -> int:
        """Stop the server, by force if it takes longer than that, and remove its folder; returns its exit code."""
        self.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        return self.process.returncode


def start(
    environment: Path,
    repository: Path,
    model: str,
    host: str = "127.0.0.1",
    ports: Ports | None = None,
    verbose: bool = False,
    folder: Path | None = None,
) -> Server:
    """Start the server of `environment` with a model repository; it is not ready yet.

    Ports of 0 take free ones. `folder` is for the server's own files; it is removed when the server stops. Raises
    EngineError for a port in use, a host that is not this machine's, and a machine that cannot run the server.
    """
    libpython = check_platform()
    ports = _free(host, ports or Ports())
    folder = folder or Path(tempfile.mkdtemp(prefix="vocabseg-serve-"))
    write_backends(environment, folder)
    command = [
        str(server_binary(environment)),
        f"--model-repository={repository}",
        f"--backend-directory={folder / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name=vocabseg-{os.getpid()}-{ports.http}-",
        f"--http-address={host}",
        f"--http-port={ports.http}",
        f"--grpc-address={host}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={host}",
        f"--metrics-port={ports.metrics}",
        f"--exit-timeout-secs={DRAIN}",
        "--disable-auto-complete-config",
    ]
    process = _spawn(command, _variables(environment, libpython, folder), folder / "server.log", verbose)
    return Server(process, folder, host, ports, model)


def _variables(environment: Path, libpython: Path, folder: Path) -> dict[str, str]:
    """The server's environment variables: the model process takes the first python3 on PATH."""
    libraries = [str(site_packages(environment) / "nvidia_pytriton.libs"), str(libpython)]
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {
        **given,
        "PATH": f"{environment / 'bin'}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": ":".join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        "VIRTUAL_ENV": str(environment),
        PACKAGE_PATH: str(folder / "package"),
    }


def _spawn(command: Sequence[str], variables: dict[str, str], log: Path, verbose: bool) -> subprocess.Popen[bytes]:
    """A process in a group of its own, which is told to end when this one dies."""
    libc = ctypes.CDLL(None)

    def follow_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    with open(log, "wb") as file:
        return subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=None if verbose else file,
            stderr=None if verbose else subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches this process only, which then stops the server
            preexec_fn=follow_parent,
        )


def _free(host: str, ports: Ports) -> Ports:
    """The ports, with free ones for those that are 0; raises EngineError where one cannot be had."""
    chosen = []
    held = []
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise EngineError(f"the host {host!r} is unknown ({error.strerror}): give an address of this machine") from None
    try:
        for what, port in msgspec.structs.asdict(ports).items():
            held.append(socket.socket(family))
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held[-1].bind((address[0], port))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise EngineError(
                    f"cannot listen on {host}:{port} ({reason}): choose another with --{what}-port"
                ) from None
            chosen.append(held[-1].getsockname()[1])
    finally:
        for taken in held:
            taken.close()
    return Ports(*chosen)
