"""Engines: a graph made runnable on one device, behind one small interface."""

import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.threads import thread_count

Arrays = dict[str, np.ndarray]


class Runnable(Protocol):
    """What an engine module returns: one graph, ready to run."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name for the given inputs by name; C-contiguous arrays of the graph's dtypes."""
        ...


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine runs a bundle, where and in which precision, and why."""

    name: str
    device: str
    precision: str
    reason: str

    @property
    def key(self) -> str:
        """Short name under which results of this engine may be cached, such as "openvino-cpu-float32"."""
        return f"{self.name}-{self.device}-{self.precision}"


# Engine name -> (module to import, precisions it offers on a CPU, the first one being the default).
CPU_ENGINES = {
    "openvino": ("openvino", ("float32", "bfloat16")),
    "onnxruntime": ("onnxruntime", ("float32",)),
}


def installed(name: str) -> bool:
    """Whether the package behind an engine can be imported; it is not imported here."""
    return find_spec(CPU_ENGINES[name][0]) is not None


def choose(engine: str | None = None, device: str = "auto", precision: str | None = None) -> Choice:
    """Pick the engine for this machine: the one asked for, else the first installed of OpenVINO and ONNX Runtime.

    Raises EngineError for an unknown or missing engine, an unknown device, or a precision the engine does not have.
    """
    if device not in ("auto", "cpu"):
        raise EngineError(f"device {device!r} is not supported: use 'cpu' or 'auto'")
    if engine is not None and engine not in CPU_ENGINES:
        raise EngineError(f"unknown engine {engine!r}: use one of {', '.join(CPU_ENGINES)}")
    candidates = [engine] if engine else list(CPU_ENGINES)
    found = [name for name in candidates if installed(name)]
    if not found:
        raise EngineError(
            f"the engine {engine} is not installed: pip install {engine}" if engine
            else "no engine is installed: pip install 'vocabseg[cpu]' (OpenVINO and ONNX Runtime)"
        )  # fmt: skip
    name = found[0]
    offered = CPU_ENGINES[name][1]
    if precision is not None and precision not in offered:
        raise EngineError(f"the engine {name} has no precision {precision!r} on a CPU: use {' or '.join(offered)}")
    if engine:
        reason = "it was asked for"
    elif name == "openvino":
        reason = "it is installed and the fastest of the CPU engines"
    else:
        reason = "it is installed, and OpenVINO, which is faster on a CPU, is not"
    return Choice(name=name, device="cpu", precision=precision or offered[0], reason=reason)


class Engine:
    """One graph on one engine, opened when it is first run. Calls from several threads run one after the other."""

    def __init__(self, path: str | Path, choice: Choice):
        self.path = Path(path)
        self.choice = choice
        self.key = choice.key
        self._lock = threading.Lock()
        self._runnable: Runnable | None = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the graph on arrays by input name and return all outputs by name; raises EngineError when it cannot."""
        with self._lock:
            if self._runnable is None:
                self._runnable = _open(self.path, self.choice)
            return self._runnable.run(inputs)

    def close(self) -> None:
        """Free the graph's memory; the next run opens it again."""
        with self._lock:
            self._runnable = None


def open_engine(
    path: str | Path, engine: str | None = None, device: str = "auto", precision: str | None = None
) -> Engine:
    """An engine for the ONNX graph at `path`; raises EngineError as `choose` does."""
    return Engine(path, choose(engine, device, precision))


def _open(path: Path, choice: Choice) -> Runnable:
    if choice.name == "openvino":
        from vocabseg.runtime.engines.openvino import OpenVinoGraph

        return OpenVinoGraph(path, choice.precision, thread_count())
    from vocabseg.runtime.engines.onnxruntime import OnnxRuntimeGraph

    return OnnxRuntimeGraph(path, thread_count())
