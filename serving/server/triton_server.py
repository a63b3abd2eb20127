"""A tritonserver of our own: started with a model repository, watched, and stopped without losing an answer."""

import contextlib
import ctypes
import http.client
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from vocabseg.runtime.errors import EngineError
from vocabseg.serving.protocol import PACKAGE_PATH, RUNNING, SUPERVISED, restrictions
from vocabseg.serving.server import process_table
from vocabseg.serving.server.environment import check_platform, server_binary, site_packages, write_backends

# Seconds that requests may still take once the server is told to stop.
DRAIN = 30
# Checks, a tenth of a second apart, that must find nothing under way before a stopping server is killed.
IDLE_LOOKS = 10
PR_SET_PDEATHSIG = 1
SHARED_MEMORY = Path("/dev/shm")
STUB = "triton_python_backend_stub"


class Ports(msgspec.Struct, frozen=True):
    """Where the server listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


@dataclass
class TritonServer:
    """A running tritonserver; `stop` ends it. `prefix` names its shared memory."""

    process: subprocess.Popen[bytes]
    folder: Path
    host: str
    ports: Ports
    model: str
    prefix: str
    _models: list[int] = field(default_factory=list)

    def urls(self, host: str | None = None) -> dict[str, str]:
        """The addresses by what they are for."""
        host = host or self.host
        host = f"[{host}]" if ":" in host else host
        return {
            "http": f"http://{host}:{self.ports.http}",
            "grpc": f"grpc://{host}:{self.ports.grpc}",
            "metrics": f"http://{host}:{self.ports.metrics}/metrics",
        }

    def local_url(self, what: str) -> str:
        """The address for use on this machine, also when the server listens on all interfaces."""
        return self.urls({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host))[what]

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
        self._models = process_table.children(self.process.pid, STUB)
        for region in self._regions():  # Triton lets all users of the machine read what passes there
            with contextlib.suppress(FileNotFoundError):
                region.chmod(0o600)

    def last_error(self) -> str:
        """The last error in the server's log, on one line."""
        log = self.folder / "server.log"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        # An error begins with E and the date (E1124); before its message is the source line, ending in "]".
        errors = [line.partition("] ")[2].strip('"') for line in lines if re.match(r"E\d{4} ", line)]
        errors = [error for error in errors if "CudaDriverHelper" not in error]  # logged on machines without a GPU
        return errors[-1] if errors else "it logged no error; see --verbose"

    def healthy(self) -> bool:
        """Whether the server and all its model processes run.

        Triton 2.51 does not replace a model process that has died: its requests fail from then on, and unloading the
        model waits for it forever. The whole server must be restarted.
        """
        return self.process.poll() is None and all(map(process_table.alive, self._models))

    def stop(self) -> None:
        """Let the server answer what it has accepted, end it, and remove its files.

        When told to end, tritonserver takes no new connections, but waits as long as it may for those that clients keep
        open, idle or not. So it is killed as soon as nothing is under way.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + DRAIN
        idle = 0
        if self._models and not any(map(process_table.alive, self._models)):
            idle = IDLE_LOOKS  # nobody is left to answer
        while self.process.poll() is None and time.monotonic() < end and idle < IDLE_LOOKS:
            time.sleep(0.1)
            idle = 0 if self.busy() else idle + 1
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        for region in self._regions():  # a killed process leaves its own behind
            region.unlink(missing_ok=True)

    def _regions(self) -> list[Path]:
        return list(SHARED_MEMORY.glob(f"{self.prefix}*"))

    def busy(self) -> bool:
        """Whether a request waits or runs, or an answer is on its way."""
        try:
            with urllib.request.urlopen(self.local_url("metrics"), timeout=2) as answer:
                text = answer.read().decode()
        except OSError:
            return False  # metrics end last
        return _under_way(text) > 0 or process_table.unsent(self.ports.http, self.ports.grpc)


def _under_way(metrics: str) -> float:
    """How many requests wait or run, by the server's metrics page; those of dead processes do not count."""
    total = 0.0
    for line in metrics.splitlines():
        process = re.match(RUNNING + r'\{.*pid="(\d+)"', line)
        if line.startswith("nv_inference_pending_request_count{") or (process and process_table.alive(int(process[1]))):
            total += float(line.rpartition(" ")[2])
    return total


def start(
    environment: Path,
    repository: Path,
    model: str,
    folder: Path,
    host: str = "127.0.0.1",
    ports: Ports | None = None,
    verbose: bool = False,
) -> TritonServer:
    """Start the server of `environment` with a model repository; it is not ready yet.

    `folder`, which must exist, is for the server's own files and is removed when it stops. Port 0 takes a free one.
    Raises EngineError for a port in use, a host that is not this machine, and a machine that cannot run the server.
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
        *(f"--{what}-address={host}" for what in Ports.__struct_fields__),
        *(f"--{what}-port={port}" for what, port in msgspec.structs.asdict(ports).items()),
        f"--exit-timeout-secs={DRAIN}",
        "--disable-auto-complete-config",
        *restrictions(secrets.token_hex(32)),  # nobody needs to know it
    ]
    process = _spawn(command, _variables(environment, libpython, folder), folder / "server.log", verbose)
    return TritonServer(process, folder, host, ports, model, prefix)


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
    """A process in a group of its own, which gets SIGTERM when this one dies."""
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
    """The ports, with a free one for each 0; raises EngineError for one that cannot be used."""
    chosen = []
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise EngineError(f"the host {host!r} is unknown ({error.strerror}): give an address of this machine") from None
    with contextlib.ExitStack() as held:
        for what, port in msgspec.structs.asdict(ports).items():
            taken = held.enter_context(socket.socket(family))
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                taken.bind((address[0], port))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise EngineError(
                    f"cannot listen on {host}:{port} ({reason}): choose another with --{what}-port"
                ) from None
            chosen.append(taken.getsockname()[1])
    return Ports(*chosen)
