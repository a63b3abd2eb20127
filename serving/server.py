"""A tritonserver of one's own: started with a model repository, watched, and stopped with no answer lost."""

import contextlib
import ctypes
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vocabseg.runtime.errors import EngineError
from vocabseg.serving import metrics, processes
from vocabseg.serving.environment import check_platform, server_binary, site_packages, write_backends
from vocabseg.serving.repository import PACKAGE_PATH, SUPERVISED

# Seconds that requests may still take once the server is told to stop.
DRAIN = 30
# Looks at a tenth of a second each that must find nothing under way before a server that was told to end is ended.
IDLE_LOOKS = 10
PR_SET_PDEATHSIG = 1
SHARED_MEMORY = Path("/dev/shm")
STUB = "triton_python_backend_stub"


class Ports(msgspec.Struct, frozen=True):
    """Where the server listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


class Server:
    """A running tritonserver; `stop` ends it."""

    def __init__(
        self, process: subprocess.Popen[bytes], folder: Path, host: str, ports: Ports, model: str, prefix: str
    ):
        self.process = process
        self.prefix = prefix
        self._models: list[int] = []
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
        return self._urls(self.host)

    def local_url(self, what: str) -> str:
        """The address for this machine's own use, where the server listens on all of them."""
        return self._urls({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host))[what]

    def _urls(self, host: str) -> dict[str, str]:
        host = f"[{host}]" if ":" in host else host
        return {
            "http": f"http://{host}:{self.ports.http}",
            "grpc": f"grpc://{host}:{self.ports.grpc}",
            "metrics": f"http://{host}:{self.ports.metrics}/metrics",
        }

    def ready(self) -> bool:
        """Whether the server and the model take requests."""
        url = f"{self.local_url('http')}/v2/models/{self.model}/ready"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
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
        self._models = processes.children(self.process.pid, STUB)

    def last_error(self) -> str:
        """The error that the server told last, on one line."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        # An error begins with E and the date (E1124); before its message stands the source line, ending in "]".
        errors = [line.partition("] ")[2].strip('"') for line in lines if re.match(r"E\d{4} ", line)]
        errors = [error for error in errors if "CudaDriverHelper" not in error]  # told on every machine without a GPU
        return errors[-1] if errors else "it told no error; see --verbose"

    def healthy(self) -> bool:
        """Whether the server and all its model processes live.

        Triton 2.51 does not replace a model process that has died: its requests fail from then on, and unloading the
        model waits for it without end. The whole server must be started again.
        """
        return self.process.poll() is None and all(processes.alive(pid) for pid in self._models)

    def stop(self) -> None:
        """Let the server answer what it has taken, end it, and remove its files.

        Told to end, tritonserver takes no new connections, but waits for those that clients keep open, idle or not, for
        as long as it may. So it is ended as soon as nothing is under way.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + DRAIN
        idle = 0
        if self._models and not any(map(processes.alive, self._models)):
            idle = IDLE_LOOKS  # nobody is left to answer
        while self.process.poll() is None and time.monotonic() < end and idle < IDLE_LOOKS:
            time.sleep(0.1)
            idle = 0 if self.busy() else idle + 1
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        for region in SHARED_MEMORY.glob(f"{self.prefix}*"):  # those of a process that was killed stay
            region.unlink(missing_ok=True)

    def busy(self) -> bool:
        """Whether a request waits or runs, or an answer is on its way."""
        try:
            with urllib.request.urlopen(self.local_url("metrics"), timeout=2) as answer:
                text = answer.read().decode()
        except OSError:
            return False  # metrics are the last to go
        return metrics.under_way(text, processes.alive) > 0 or processes.unsent(self.ports.http, self.ports.grpc)


def start(
    environment: Path,
    repository: Path,
    model: str,
    folder: Path,
    host: str = "127.0.0.1",
    ports: Ports | None = None,
    verbose: bool = False,
) -> Server:
    """Start the server of `environment` with a model repository; it is not ready yet.

    `folder`, which must exist, is for the server's own files and goes when it stops. Ports of 0 take free ones. Raises
    EngineError for a port in use, a host that is not this machine's, and a machine that cannot run the server.
    """
    libpython = check_platform()
    ports = _free(host, ports or Ports())
    write_backends(environment, folder)
    prefix = f"vocabseg-{os.getpid()}-{ports.http}-"
    command = [
        str(server_binary(environment)),
        f"--model-repository={repository}",
        f"--backend-directory={folder / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
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
    return Server(process, folder, host, ports, model, prefix)


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
        SUPERVISED: "1",
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
