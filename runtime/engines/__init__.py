"""Engines: a graph made runnable on one device, behind one small interface."""

import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from vocabseg.runtime.errors import BundleError, EngineError
from vocabseg.runtime.threads import thread_count

if TYPE_CHECKING:
    from vocabseg.runtime.bundle import Bundle

Arrays = dict[str, np.ndarray]


class Runnable(Protocol):
    """What an engine module returns: one graph, ready to run."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name for the given inputs by name; C-contiguous arrays, float32 where they are floats."""
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

    @property
    def variant(self) -> str:
        """Which of the bundle's graphs are run: `Bundle.graph`'s precision."""
        return VARIANTS.get((self.name, self.device.partition(":")[0], self.precision), self.precision)

    def for_graph(self, graph: str) -> "Choice":
        """The choice for one of the bundle's graphs: some keep to float32 (`graph_precision`)."""
        return msgspec.structs.replace(self, precision=graph_precision(graph, self.precision))


# Engine name -> (module to import, precisions it offers on a CPU). The first one is the default, except that OpenVINO
# runs in bfloat16 on CPUs with AMX.
CPU_ENGINES = {
    "openvino": ("openvino", ("float32", "bfloat16", "int8")),
    "onnxruntime": ("onnxruntime", ("float32", "float16", "int8", "fp8")),
}

# Where an engine in a precision does not run the graphs of that name. OpenVINO takes float32 graphs to bfloat16 itself;
# ONNX Runtime has no FP16 arithmetic on x86, and checks in float32, with rounding, what FP16 graphs compute on a GPU,
# where it has operations of its own.
VARIANTS = {
    ("openvino", "cpu", "bfloat16"): "float32",
    ("onnxruntime", "cpu", "float16"): "float16-rounded",
    ("onnxruntime", "cuda", "float16"): "float16-onnxruntime",
}

# Precisions in which products have eight-bit operands and all else stays float; calibration writes their graphs.
QUANTISED = ("int8", "fp8")

# What bfloat16 is for; other graphs stay in float32. Mask logits decide single pixels, and text is encoded once: in
# bfloat16 the demo model's proposals change 0.3 % of all labels (2.5 % of the worst scene's), its embeddings 0.05 %.
BFLOAT16_GRAPHS = ("image_encoder",)


def graph_precision(graph: str, precision: str) -> str:
    """The precision in which a CPU engine of `precision` runs a graph of the bundle, such as "proposal"."""
    return "float32" if precision == "bfloat16" and graph not in BFLOAT16_GRAPHS else precision


def installed(name: str) -> bool:
    """Whether the package behind an engine can be imported; it is not imported here."""
    return find_spec(CPU_ENGINES[name][0]) is not None


@cache
def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bfloat16 (AMX), some eight times as fast as float32 without it.

    False where the system does not tell (only Linux does). OpenVINO offers bfloat16 on any CPU with AVX-512, where it
    gains at most a factor of two and loses the same accuracy, so there it is left to the user.
    """
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return "amx_bf16" in flags.split()


# Up to here ONNX Runtime runs a model as fast as OpenVINO and opens it half a second sooner (measured with the 11 MB of
# the demo model).
SMALL_MODEL_BYTES = 32_000_000


def choose(
    engine: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    model_bytes: int | None = None,
    bundle: "Bundle | None" = None,
) -> Choice:
    """Pick the engine for this machine: the one asked for, else the fastest that is installed.

    "auto" takes the first GPU if there is one; where it cannot be used, that is told once, and why. On a CPU the first
    installed of OpenVINO and ONNX Runtime is taken. `model_bytes`, the size of a bundle's graphs where known, lets
    small models prefer ONNX Runtime. Without `precision` OpenVINO runs in bfloat16 where the CPU has AMX, else in
    float32. `bundle` tells which engines and precisions it has on a GPU.

    Raises EngineError for an unknown or missing engine, an unknown device, or a precision the engine does not have.
    """
    from vocabseg.runtime.engines import cuda_choice

    known = dict.fromkeys((*CPU_ENGINES, *cuda_choice.GPU_ENGINES))
    if engine is not None and engine not in known:
        raise EngineError(f"unknown engine {engine!r}: use one of {', '.join(known)}")
    if device not in ("auto", "cpu"):
        return cuda_choice.choose_gpu(engine, device, precision, bundle)
    if device == "auto" and engine != "openvino" and gpu_present():
        try:
            return cuda_choice.choose_gpu(engine, "cuda", precision, bundle)
        except (EngineError, BundleError) as error:
            if engine == "tensorrt":
                raise
            cuda_choice.tell_fallback(str(error))
    if engine is not None and engine not in CPU_ENGINES:
        raise EngineError(f"the engine {engine} needs an NVIDIA GPU: use one of {', '.join(CPU_ENGINES)}")
    small = model_bytes is not None and model_bytes <= SMALL_MODEL_BYTES and precision in (None, "float32")
    preferred = ["onnxruntime", "openvino"] if small else ["openvino", "onnxruntime"]
    candidates = [engine] if engine else preferred
    found = [name for name in candidates if installed(name)]
    if not found:
        raise EngineError(
            f"the engine {engine} is not installed: pip install {engine}" if engine
            else "no engine is installed: pip install 'vocabseg[cpu]' (OpenVINO and ONNX Runtime)"
        )  # fmt: skip
    name = found[0]
    offered = CPU_ENGINES[name][1]
    if precision is not None and precision not in offered:
        raise EngineError(f"the engine {name} has no precision {precision!r} on a CPU: use {', '.join(offered)}")
    used = precision or ("bfloat16" if name == "openvino" and has_amx() else offered[0])
    if engine:
        reason = "it was asked for"
    elif small and name == "onnxruntime":
        reason = "it is installed and opens a small model fastest"
    elif name == "openvino":
        reason = "it is installed and the fastest of the CPU engines"
    else:
        reason = "it is installed, and OpenVINO, which is faster on a CPU, is not"
    if precision is None and used == "bfloat16":
        reason += "; in bfloat16, since this CPU has AMX"
    return Choice(name=name, device="cpu", precision=used, reason=reason)


def gpu_present() -> bool:
    """Whether this machine seems to have an NVIDIA GPU that this process may use."""
    from vocabseg.runtime.engines import cuda_choice

    return cuda_choice.gpu_present()


class Engine:
    """One graph on one engine, opened when it is first run.

    Calls from several threads run one after the other, but for ONNX Runtime on one thread each (`limit_threads`).
    """

    def __init__(self, path: str | Path, choice: Choice, digest: str | None = None, batched: bool = False):
        """`digest` tells apart graphs of one bundle and precision that compute different values: it joins the key.

        `batched`: runs bring many samples, along the first axis of every input and output.
        """
        self.path = Path(path)
        self.choice = choice
        self.batched = batched
        self.key = choice.key if digest is None else f"{choice.key}-{digest[:16]}"
        self._opening, self._running = threading.Lock(), threading.Lock()
        self._opened: dict[int, Runnable] = {}  # by number of threads
        self.seconds = 0.0  # spent in runs so far

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the graph on arrays by input name and return all outputs by name; raises EngineError when it cannot."""
        threads = thread_count()
        with self._opening:
            if threads not in self._opened:
                self._opened[threads] = _open(self.path, self.choice, threads, self.batched)
            runnable = self._opened[threads]
        with nullcontext() if threads == 1 and self.choice.name == "onnxruntime" else self._running:
            begin = time.perf_counter()
            try:
                return runnable.run(inputs)
            finally:
                spent = time.perf_counter() - begin
                with self._opening:
                    self.seconds += spent

    def close(self) -> None:
        """Free the graph's memory; the next run opens it again."""
        with self._opening:
            self._opened.clear()


def open_engine(
    path: str | Path, engine: str | None = None, device: str = "auto", precision: str | None = None
) -> Engine:
    """An engine for the ONNX graph at `path`; raises EngineError as `choose` does."""
    return Engine(path, choose(engine, device, precision))


def _open(path: Path, choice: Choice, threads: int, batched: bool) -> Runnable:
    if choice.name == "openvino":
        from vocabseg.runtime.engines.openvino import OpenVinoGraph

        return OpenVinoGraph(path, choice.precision, threads, batched)
    from vocabseg.runtime.engines.onnxruntime import OnnxRuntimeGraph

    return OnnxRuntimeGraph(path, threads, literal=choice.precision == "fp8")
