"""Processes: one for each variant, so that none shares threads or memory with another; and fresh ones to start cold."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.benchmarks.process_memory import process_memory
from vocabseg.benchmarks.speed.engine import EngineSpec
from vocabseg.benchmarks.speed.results import ColdStart, timing
from vocabseg.benchmarks.speed.variants import LIMITS, VariantSpec
from vocabseg.runtime.errors import EngineError, VocabsegError

# Environment variables for the threads of numerical libraries, which read them when they are loaded.
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class VariantProcess:
    """A variant in a process of its own; calls of its methods go there and come back, one at a time."""

    def __init__(self, spec: VariantSpec):
        self.spec = spec
        context = get_context("spawn")  # engines with threads do not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec), daemon=True)
        with _deaf_to_ctrl_c():
            self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until the variant is open; raises VocabsegError with the reason when it cannot be."""
        self._receive()

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the variant returns; raises VocabsegError when it fails there."""
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise EngineError(f"the process of {self.spec.name} has ended") from None
        return self._receive()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._connection.close()
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            code = self._process.exitcode
            raise EngineError(
                f"the process of {self.spec.name} died (exit code {code}), perhaps out of memory"
            ) from None
        if kind == "error":
            raise value
        return value


def _serve(connection: Connection, spec: VariantSpec) -> None:
    """Open the variant and answer until the other side hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the parent, which then hangs up
    try:
        variant = spec.open()
    except Exception as error:
        connection.send(("error", _portable(error)))
        return
    connection.send(("done", None))
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = connection.recv()
            try:
                value = peak_memory() if method == "memory" else getattr(variant, method)(*arguments)
            except Exception as error:
                connection.send(("error", _portable(error)))
            else:
                connection.send(("done", value))


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, not even while they load their modules."""
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be set
        yield
        return
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _portable(error: Exception) -> VocabsegError:
    """An error that can be sent: one of our own as it is, others as text."""
    if isinstance(error, VocabsegError):
        return error
    text = " ".join(str(error).split())
    return EngineError(f"{type(error).__name__}: {text[:300]}")


def peak_memory() -> int | None:
    """The most host memory this process ever had, in bytes; None where the system does not tell."""
    peak = process_memory("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def numerical_threads(count: int) -> Iterator[None]:
    """Processes started inside give numerical libraries that many threads, unless the user has set another number."""
    with _environment({name: str(count) for name in THREAD_SETTINGS if name not in os.environ}):
        yield


@contextlib.contextmanager
def limited(spec: VariantSpec) -> Iterator[None]:
    """Processes started inside are held to the variant's limit."""
    with _environment(LIMITS.get(spec.limit, {})):
        yield


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


STEPS = ("start Python, import", "open the bundle", "encode the names", "first image")
# What a fresh process runs. It prints the end of each step by the clock that all processes share.
COLD_START = """
import json, sys, time
from pathlib import Path
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary
folder, settings, device, engine, precision, names, image = json.load(sys.stdin)
times = [time.monotonic()]
segmenter = Segmenter(open_adjusted(Path(folder), settings), device, engine, precision)
times.append(time.monotonic())
vocabulary = Vocabulary(names)
segmenter.embed_names(vocabulary)
times.append(time.monotonic())
segmenter(image, vocabulary)
times.append(time.monotonic())
print(json.dumps(times))
"""


def cold_start(spec: EngineSpec, image: Path, repeat: int) -> ColdStart:
    """How long a user waits who starts from nothing: a fresh process, up to the labels of its first image.

    `repeat` processes run one after the other, without a cache folder: class names are encoded and all files hashed
    anew, as on a first run. The bundle's files may lie in the system's file cache. Raises EngineError where a process
    fails.
    """
    request = json.dumps(
        [str(spec.folder), spec.settings, spec.device, spec.engine, spec.precision, spec.vocabulary.names, str(image)]
    )
    seconds: list[float] = []
    steps: list[list[float]] = []
    for _ in range(repeat):
        begin = time.monotonic()
        run = subprocess.run(
            [sys.executable, "-c", COLD_START],
            input=request, capture_output=True, text=True, check=False, env={**os.environ, "VOCABSEG_CACHE_DIR": ""},
        )  # fmt: skip
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["it printed no reason"])[-1]
            raise EngineError(f"a fresh process failed: {reason}")
        times = json.loads(run.stdout.splitlines()[-1])
        seconds.append(times[-1] - begin)
        steps.append(np.diff([begin, *times]).tolist())
    medians = np.median(steps, axis=0).tolist()
    return ColdStart(timing=timing(seconds), steps=dict(zip(STEPS, medians, strict=True)))
