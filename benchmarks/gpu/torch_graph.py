"""The engine "torch": a bundle's ONNX graphs run operator by operator by PyTorch, on the device's own arrays.

For GPU hosts that have PyTorch but neither ONNX Runtime for GPUs nor TensorRT, and as their baseline: kernels, pipeline
and labels can be checked there, and stages be timed. Every operator computes in the graph's own types, so an FP16 graph
keeps its float32 islands. Runs whose arrays come again at the same addresses are replayed as CUDA graphs. The runtime
never imports this module.
"""

import ctypes
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from vocabseg.benchmarks.gpu.torch_operators import OPERATORS
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.engines import device_engines
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.segmenter import segmenter as segmenters
from vocabseg.runtime.segmenter.segmenter import Segmenter

# Operators whose inputs must be on one device.
TOGETHER = ("Add", "Concat", "Div", "Equal", "MatMul", "Mul", "Sub", "Where")


class TorchGraph:
    """One ONNX graph on PyTorch's device `place`. Integers, which sizes are made of, stay on the host.

    Raises EngineError for a graph with an operator that is not known here.
    """

    def __init__(self, path: Path, place: str):
        model = onnx.load(path)
        unknown = {node.op_type for node in model.graph.node} - OPERATORS.keys() - {"Constant"}
        unknown |= {node.domain for node in model.graph.node} - {"", "ai.onnx"}
        if unknown:
            raise EngineError(f"{path}: the engine torch has no {', '.join(sorted(unknown))}: use another engine")
        self.place = torch.device(place)
        self._constants = {entry.name: self._constant(entry) for entry in model.graph.initializer}
        self._nodes = []
        for node in model.graph.node:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            if node.op_type == "Constant":
                self._constants[node.output[0]] = self._constant(attributes["value"])
            else:
                self._nodes.append((node.op_type, list(node.input), list(node.output), attributes))
        self.input_dtypes = {entry.name: _dtype(entry) for entry in model.graph.input}
        self.output_dtypes = {entry.name: _dtype(entry) for entry in model.graph.output}
        self._uses = Counter(name for _, names, _, _ in self._nodes for name in names) + Counter(
            list(self.output_dtypes)
        )
        self._moved: dict[tuple[Any, ...], dict[tuple[int, int], Any]] = {}  # by the inputs' shapes

    def _constant(self, entry: Any) -> Any:
        tensor = torch.from_numpy(np.array(numpy_helper.to_array(entry)))
        return tensor.to(self.place) if tensor.is_floating_point() else tensor

    @torch.inference_mode()
    def compute(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name, tensors on `place`, for tensors there."""
        values, left = {**self._constants, **inputs}, Counter(self._uses)
        moved = self._moved.setdefault(tuple(tuple(x.shape) for x in inputs.values()), {})
        for number, (kind, names, outputs, attributes) in enumerate(self._nodes):
            given = [values[name] if name else None for name in names]
            if kind in TOGETHER:
                given = self._together(given, number, moved)
            made = OPERATORS[kind](given, attributes)
            values.update(zip(outputs, made if isinstance(made, tuple) else (made,), strict=False))
            for name in names:
                left[name] -= 1
                if not left[name] and name not in self._constants:
                    values.pop(name, None)
        return {name: values[name].to(self.place) for name in self.output_dtypes}

    def _together(self, given: list[Any], number: int, moved: dict[tuple[int, int], Any]) -> list[Any]:
        """On one device. What was made of sizes is copied there once for all runs of the same shapes: a CUDA graph must
        not copy from the host."""
        if all(x.device == given[0].device for x in given):
            return given
        for k, x in enumerate(given):
            if x.device != self.place:
                given[k] = moved.setdefault((number, k), None)
                if given[k] is None:
                    given[k] = moved[number, k] = x.to(self.place)
        return given


class TorchDeviceGraph(TorchGraph):
    """A `DeviceGraph` (runtime/engines/interface.py).

    on_host: the device's memory is the host's, as a rehearsal has it without a GPU; PyTorch then computes on the CPU.
    """

    def __init__(self, device: Device, path: Path, on_host: bool = False):
        super().__init__(path, "cpu" if on_host else f"cuda:{device.ordinal}")
        self._on_host = on_host
        self._seen: set[Any] = set()
        self._graphs: dict[Any, tuple[Any, Any]] = {}
        self._pool: Any = None

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream) -> None:
        """Enqueue the graph on `stream`."""
        if self._on_host:
            stream.synchronize()
            self._fill(_tensors(inputs, _of_host), _tensors(outputs, _of_host))
            return
        key = tuple((name, a.shape, a.pointer) for arrays in (inputs, outputs) for name, a in arrays.items())
        with torch.cuda.device(self.place):
            ours = torch.cuda.ExternalStream(stream.handle, device=self.place)
            with torch.cuda.stream(ours):
                if key in self._graphs:
                    self._graphs[key][0].replay()
                    return
                arrays = _tensors(inputs, self._of_device), _tensors(outputs, self._of_device)
                if key not in self._seen:  # memory of what comes only once is not worth a graph
                    self._seen.add(key)
                    self._fill(*arrays)
                    return
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=ours, capture_error_mode="thread_local"):
                self._fill(*arrays)
            self._pool = self._pool or graph.pool()
            self._graphs[key] = graph, arrays
            with torch.cuda.stream(ours):
                graph.replay()

    def close(self) -> None:
        """Free the graph's memory."""
        if not self._on_host:
            torch.cuda.synchronize(self.place)
        for held in (self._graphs, self._moved, self._constants):
            held.clear()

    def _of_device(self, array: DeviceArray) -> Any:
        return torch.as_tensor(array, device=self.place)

    def _fill(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        for name, result in self.compute(inputs).items():
            outputs[name].copy_(result)


@contextmanager
def torch_engine(precision: str, ordinal: int = 0, on_host: bool = False) -> Iterator[None]:
    """Meanwhile every segmenter that is made runs its graphs in PyTorch, in "float32" or "float16"."""
    choice = Choice(
        name="torch", device=f"cuda:{ordinal}", precision=precision, reason="PyTorch runs the graphs' operators"
    )

    def open_graph(device: Device, bundle: Bundle, name: str, choice: Choice, stream: Stream) -> TorchDeviceGraph:
        return TorchDeviceGraph(device, bundle.graph_path(name, choice.precision), on_host)

    with (
        mock.patch.object(segmenters, "choose", return_value=choice),
        mock.patch.object(device_engines, "open_graph", open_graph),
    ):
        yield


def torch_segmenter(bundle: Bundle, precision: str, ordinal: int = 0, on_host: bool = False) -> Segmenter:
    """A segmenter whose graphs run in PyTorch; raises BundleError where the bundle lacks the precision's graphs."""
    with torch_engine(precision, ordinal, on_host):
        segmenter = Segmenter(bundle)
        for name in bundle.manifest.graphs:
            _ = segmenter.engine(name).graph  # type: ignore[attr-defined]
    return segmenter


def _dtype(entry: Any) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))


def _tensors(arrays: Mapping[str, DeviceArray], wrap: Any) -> dict[str, Any]:
    return {name: wrap(array) for name, array in arrays.items()}


def _of_host(array: DeviceArray) -> Any:
    """A tensor over memory of the host; PyTorch does not own it."""
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.pointer)
    return torch.from_numpy(np.frombuffer(memory, array.dtype).reshape(array.shape))
