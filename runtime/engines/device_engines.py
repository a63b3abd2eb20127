"""A bundle's graphs on a GPU, and the interface through which host code runs them."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import output_shapes
from vocabseg.runtime.bundle.plans import TITLES, find_plan
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.engines.choose import VISION, choose
from vocabseg.runtime.engines.host_engines import graph_engine
from vocabseg.runtime.engines.interface import Choice, DeviceGraph, KeyedRunnable
from vocabseg.runtime.errors import BundleError, EngineError

# Sets of shapes whose outputs' shapes are remembered.
SHAPES_KEPT = 256
# Allocates one output: name, shape, dtype.
Allocate = Callable[[str, tuple[int, ...], np.dtype], DeviceArray]


class DeviceEngine:
    """One of a bundle's graphs on a GPU, opened on first use.

    `run` acquires `lock`; callers of `start` must hold it already.
    """

    def __init__(
        self, device: Device, bundle: Bundle, name: str, choice: Choice, stream: Stream, lock: "threading.RLock"
    ):
        self.device = device
        self.name = name
        self.choice = choice
        self.stream = stream
        self._bundle, self._lock = bundle, lock
        self._record = bundle.graph(name)
        self._graph: DeviceGraph | None = None
        self._shapes: dict[tuple[tuple[int, ...], ...], dict[str, tuple[int, ...]]] = {}

    @cached_property
    def key(self) -> str:
        """Names what runs: of a plan its own hash, since nothing proves that it computes what its graph does."""
        choice, graphs = self.choice, self._bundle.manifest.graphs_in(self.choice.variant)
        digest = ""
        if choice.name in TITLES:
            from vocabseg.runtime.engines.tensorrt.package import load_package

            info = load_package(choice.name).info
            digest = find_plan(self._bundle, self.name, choice.precision, self.device, info).record.sha256
        elif choice.precision != "float32" and self.name in graphs:
            digest = graphs[self.name].digest()
        return "-".join(filter(None, (choice.name, self.device.key, choice.precision, digest[:16])))

    @property
    def graph(self) -> DeviceGraph:
        """The open graph."""
        if self._graph is None:
            with self.device.activate():
                self._graph = open_graph(self.device, self._bundle, self.name, self.choice, self.stream)
        return self._graph

    @property
    def largest_batch(self) -> int | None:
        """The largest batch that the engine was built for; None if it has no limit."""
        return getattr(self.graph, "largest_batch", None)

    def start(self, inputs: Mapping[str, DeviceArray], allocate: Allocate) -> dict[str, DeviceArray]:
        """Enqueue the graph on this engine's stream; the returned outputs are valid once the stream has run it."""
        outputs = {
            name: allocate(name, shape, self.graph.output_dtypes[name])
            for name, shape in self.output_shapes({name: array.shape for name, array in inputs.items()}).items()
        }
        self.graph.run(inputs, outputs, self.stream)
        return outputs

    def output_shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Shapes of all outputs, given those of the inputs."""
        key = tuple(map(tuple, shapes.values()))
        if key not in self._shapes:
            if len(self._shapes) >= SHAPES_KEPT:
                self._shapes.clear()
            self._shapes[key] = output_shapes(self._record, shapes)
        return self._shapes[key]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run on host arrays and wait; outputs by name, floats as float32. For text, tests and measurements."""
        with self._lock, self.device.activate():
            on_device = {}
            for name, array in inputs.items():
                host = np.ascontiguousarray(array, self.graph.input_dtypes[name])
                on_device[name] = self.device.empty(host.shape, host.dtype)
                self.stream.upload(on_device[name], host)
            outputs = self.start(on_device, lambda _, shape, dtype: self.device.empty(shape, dtype))
            found = {name: array.to_host(self.stream) for name, array in outputs.items()}
        return {name: _as_float32(array) for name, array in found.items()}

    def close(self) -> None:
        """Free the graph's memory; the next run reopens it."""
        if self._graph is not None:
            self.stream.synchronize()
            self._graph.close()
            self._graph = None


class DeviceEngines:
    """The engines of a bundle's graphs on one GPU by name, each created once; thread-safe.

    A text encoder that the chosen engine lacks runs on the CPU: it sees each name only once.
    """

    def __init__(self, device: Device, bundle: Bundle, choice: Choice, lock: "threading.RLock"):
        self._device, self._bundle, self._choice, self._lock = device, bundle, choice, lock
        self._engines: dict[str, KeyedRunnable] = {}

    def __call__(self, graph: str, stream: Stream) -> KeyedRunnable:
        """The engine of a graph; a new one is bound to `stream`."""
        with self._lock:
            if graph not in self._engines:
                on_cpu = graph not in VISION and not can_open(self._device, self._bundle, graph, self._choice)
                self._engines[graph] = (
                    graph_engine(self._bundle, self._bundle.graph(graph), choose(device="cpu")) if on_cpu
                    else DeviceEngine(self._device, self._bundle, graph, self._choice, stream, self._lock)
                )  # fmt: skip
            return self._engines[graph]


def open_graph(device: Device, bundle: Bundle, name: str, choice: Choice, stream: Stream) -> DeviceGraph:
    """Open a graph on the chosen engine, to run on `stream`; raises EngineError or BundleError."""
    if choice.name in TITLES:
        from vocabseg.runtime.engines.tensorrt.graph import TensorRtGraph
        from vocabseg.runtime.engines.tensorrt.package import load_package
        from vocabseg.runtime.engines.tensorrt.scratch import scratch_of

        package = load_package(choice.name)
        return TensorRtGraph(bundle, name, choice.precision, device, scratch_of(device), package)
    from vocabseg.runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaGraph, graph_path

    return OnnxRuntimeCudaGraph(device, graph_path(bundle, name, choice.precision), choice.precision, stream)


def can_open(device: Device, bundle: Bundle, graph: str, choice: Choice) -> bool:
    """Whether the chosen engine has this graph; text encoders may be missing."""
    try:
        if choice.name in TITLES:
            from vocabseg.runtime.engines.tensorrt.package import load_package

            find_plan(bundle, graph, choice.precision, device, load_package(choice.name).info)
        else:
            from vocabseg.runtime.engines.onnxruntime_cuda import graph_path

            graph_path(bundle, graph, choice.precision)
    except (EngineError, BundleError):
        return False
    return True


def _as_float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array
