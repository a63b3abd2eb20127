"""Graphs on a GPU: what an engine offers there, and the face by which code on the host runs one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from vocabseg.runtime.bundle import Bundle, TensorRecord, resolve_shape
from vocabseg.runtime.cuda import Device
from vocabseg.runtime.cuda_arrays import DeviceArray
from vocabseg.runtime.cuda_streams import Stream
from vocabseg.runtime.engines import Choice
from vocabseg.runtime.engines.cuda_choice import open_graph

# Makes the memory of one output: name, shape, dtype.
Allocate = Callable[[str, tuple[int, ...], np.dtype], DeviceArray]


class DeviceGraph(Protocol):
    """One graph, ready to run on a GPU."""

    @property
    def input_dtypes(self) -> Mapping[str, np.dtype]: ...

    @property
    def output_dtypes(self) -> Mapping[str, np.dtype]: ...

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream) -> None:
        """Start the graph on `stream`; inputs and outputs stay as they are until it is done.

        Raises EngineError for shapes that it cannot take and DeviceMemoryError where memory runs out.
        """
        ...

    def close(self) -> None: ...


class DeviceEngine:
    """One of a bundle's graphs on a GPU, opened when it is first needed."""

    def __init__(self, device: Device, bundle: Bundle, name: str, choice: Choice, stream: Stream):
        self.device = device
        self.name = name
        self.choice = choice
        graphs = bundle.manifest.graphs_in(choice.precision)
        digest = graphs[name].digest()[:16] if choice.precision != "float32" and name in graphs else ""
        self.key = "-".join(filter(None, (choice.name, device.key, choice.precision, digest)))
        self.stream = stream
        self._bundle = bundle
        self._record = bundle.graph(name)
        self._graph: DeviceGraph | None = None

    @property
    def graph(self) -> DeviceGraph:
        """The open graph."""
        if self._graph is None:
            with self.device.activate():
                self._graph = open_graph(self.device, self._bundle, self.name, self.choice, self.stream)
        return self._graph

    @property
    def largest_batch(self) -> int | None:
        """The largest batch that the engine was built for, if it has one."""
        return getattr(self.graph, "largest_batch", None)

    def start(self, inputs: Mapping[str, DeviceArray], allocate: Allocate) -> dict[str, DeviceArray]:
        """Run the graph on this engine's stream; returns its outputs, which are valid once the stream got there."""
        outputs = {
            name: allocate(name, shape, self.graph.output_dtypes[name])
            for name, shape in self.output_shapes({name: array.shape for name, array in inputs.items()}).items()
        }
        self.graph.run(inputs, outputs, self.stream)
        return outputs

    def output_shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Shapes of all outputs for those of the inputs."""
        sizes: dict[str, int] = {}
        for record in self._record.inputs:
            sizes.update(_sizes(record, shapes[record.name]))
        return {record.name: resolve_shape(record, sizes) for record in self._record.outputs}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run on host arrays and wait: outputs by name, floats as float32; for text, tests and measurements."""
        with self.device.activate():
            on_device = {}
            for name, array in inputs.items():
                host = np.ascontiguousarray(array, self.graph.input_dtypes[name])
                on_device[name] = self.device.empty(host.shape, host.dtype)
                self.stream.upload(on_device[name], host)
            outputs = self.start(on_device, lambda _, shape, dtype: self.device.empty(shape, dtype))
            found = {name: array.to_host(self.stream) for name, array in outputs.items()}
        return {name: _as_float32(array) for name, array in found.items()}

    def close(self) -> None:
        """Free the graph's memory; the next run opens it again."""
        if self._graph is not None:
            self.stream.synchronize()
            self._graph.close()
            self._graph = None


def _sizes(record: TensorRecord, shape: Sequence[int]) -> dict[str, int]:
    return {dimension: size for dimension, size in zip(record.shape, shape, strict=True) if isinstance(dimension, str)}


def _as_float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array
