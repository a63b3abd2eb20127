"""Real servers for tests: `vocabseg serve` as a process, with the demo model."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tests.bundles import cache_folder
from tests.golden import REPOSITORY

SCENE = REPOSITORY / "examples" / "scene.png"
READY = re.compile(r"Ready: demo at http://127\.0\.0\.1:(\d+) and grpc://127\.0\.0\.1:(\d+), metrics (http\S+)")


def serving_folder() -> str:
    """Where the server is installed, or will be: never in the user's own cache."""
    return os.environ.get("VOCABSEG_SERVING_DIR") or str(cache_folder() / "serving")


@cache
def missing() -> str | None:
    """Why no server can be started here, or None."""
    for module in ("tritonclient", "gevent", "aiohttp", "grpc"):
        if find_spec(module) is None:
            return f"the package {module} is not installed: pip install 'vocabseg[serving]'"
    done = run("serve", "--prepare-only", "--quiet")
    return done.stderr.strip() if done.returncode else None


def environment(cache_dir: Path | str = "") -> dict[str, str]:
    folders = {"VOCABSEG_SERVING_DIR": serving_folder(), "VOCABSEG_CACHE_DIR": str(cache_dir)}
    return {**os.environ, **folders}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vocabseg", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=900)


class Running:
    """A process of `vocabseg serve` that is ready."""

    def __init__(self, *options: str, cache_dir: Path | str = ""):
        command = [sys.executable, "-m", "vocabseg", "serve", "--threads", "1", "--instances", "1"]
        command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(cache_dir)
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            found = READY.search(line)
            if found:
                break
        else:
            raise AssertionError(f"the server did not get ready: {''.join(self.lines)}")
        self.http = f"http://127.0.0.1:{found[1]}"
        self.grpc = f"grpc://127.0.0.1:{found[2]}"
        self.metrics_url = found[3]
        # The pipe must be read on, or the server stands still when it is full.
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout or ()), daemon=True).start()

    def metric(self, pattern: str) -> float:
        """The sum of all metrics whose name with labels matches."""
        text = urllib.request.urlopen(self.metrics_url, timeout=10).read().decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return sum(float(value) for name, _, value in lines if re.search(pattern, name))

    def wait_for(self, pattern: str, value: float, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while self.metric(pattern) != value:
            assert time.monotonic() < end, f"{pattern} is {self.metric(pattern)}, not {value}, after {seconds} s"
            time.sleep(0.05)

    def model_processes(self) -> list[int]:
        """The processes in which the model runs."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and "triton_python_backend_stub" in (entry / "cmdline").read_text():
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if self.process.pid in _ancestors(parent):
                        found.append(int(entry.name))
        return found

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


@contextlib.contextmanager
def running(*options: str, cache_dir: Path | str = "") -> Iterator[Running]:
    server = Running(*options, cache_dir=cache_dir)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
