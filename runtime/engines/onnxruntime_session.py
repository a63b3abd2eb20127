"""A session of ONNX Runtime that reads and writes memory at given addresses, without a copy, and its CUDA graphs."""

import itertools
import threading
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.streams import CAPTURE_ATTEMPTS
from vocabseg.runtime.errors import DeviceMemoryError, EngineError

RUN_OPTIONS = {"disable_synchronize_execution_providers": "1"}
GRAPH_ID = "gpu_graph_id"
NO_GRAPH = "-1"

# A captured graph cannot be removed from a session: shapes and addresses beyond this number run without one.
MOST_GRAPHS = 64
MOST_BINDINGS = 256

_DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip


class BoundSession:
    """A session that reads and writes memory at given addresses; in tests, also of the CPU provider."""

    def __init__(self, session: Any, device_name: str, ordinal: int, cuda_graphs: bool):
        self.session = session
        self.input_dtypes = _dtypes(session.get_inputs())
        self.output_dtypes = _dtypes(session.get_outputs())
        self._where = (device_name, ordinal)
        self._cuda_graphs = cuda_graphs
        self._lock = threading.Lock()
        self._bindings: dict[tuple[Any, ...], Any] = {}
        self._graph_ids: dict[tuple[Any, ...], str] = {}
        self._new_ids = map(str, itertools.count(1))
        self._run_options: dict[str, Any] = {}
        self._failed_captures = 0  # in a row

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Run on arrays with `shape`, `dtype` and `pointer`, without waiting for the result."""
        _check("input", inputs, self.input_dtypes)
        _check("output", outputs, self.output_dtypes)
        key = tuple(
            (name, array.shape, array.pointer) for arrays in (inputs, outputs) for name, array in arrays.items()
        )
        with self._lock:
            graph = self._graph_id(key)
            binding = self._bind(key, inputs, outputs)
            try:
                self._run(key, binding, graph)
            except Exception as error:  # its exceptions derive directly from Exception
                self._bindings.pop(key, None)
                raise _run_error(error, inputs) from error

    def _bind(self, key: Any, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> Any:
        if key in self._bindings:
            return self._bindings[key]
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, *self._where, array.dtype, array.shape, array.pointer)
        for name, array in outputs.items():
            binding.bind_output(name, *self._where, array.dtype, array.shape, array.pointer)
        while len(self._bindings) >= MOST_BINDINGS:
            del self._bindings[next(iter(self._bindings))]
        self._bindings[key] = binding
        return binding

    def _graph_id(self, key: Any) -> str:
        """The first run with a key is plain and warms the session up for its shapes; later ones may be captured."""
        if (
            key in self._bindings
            and key not in self._graph_ids
            and len(self._graph_ids) < MOST_GRAPHS
            and self._failed_captures < CAPTURE_ATTEMPTS
        ):
            self._graph_ids[key] = next(self._new_ids)
        return self._graph_ids.get(key, NO_GRAPH)

    def _run(self, key: Any, binding: Any, graph: str) -> None:
        """Run; where that fails with a graph, without: it is captured again later, under another number."""
        try:
            self.session.run_with_iobinding(binding, self._options(graph))
            self._failed_captures = 0 if graph != NO_GRAPH else self._failed_captures
        except Exception as error:
            if not self._cuda_graphs or graph == NO_GRAPH:
                raise
            del self._graph_ids[key]
            self.session.run_with_iobinding(binding, self._options(NO_GRAPH))
            self._failed_captures += 1
            if self._failed_captures == CAPTURE_ATTEMPTS:
                text = f"a graph runs without CUDA graphs, which is slower: {_line(error)}"
                warnings.warn(text, RuntimeWarning, stacklevel=4)

    def _options(self, graph: str) -> Any:
        if graph in self._run_options:
            return self._run_options[graph]
        import onnxruntime

        options = self._run_options[graph] = onnxruntime.RunOptions()
        for name, value in RUN_OPTIONS.items():
            options.add_run_config_entry(name, value)
        if self._cuda_graphs:
            options.add_run_config_entry(GRAPH_ID, graph)
        return options


def _run_error(error: Exception, inputs: Mapping[str, DeviceArray]) -> EngineError:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
    return session_error(f"ONNX Runtime cannot run on {shapes}", error)


def session_error(what: str, error: Exception) -> EngineError:
    """An exception of ONNX Runtime in one line; a DeviceMemoryError if memory ran out."""
    line, lower = _line(error), str(error).lower()
    if "out of memory" in lower or "failed to allocate memory" in lower or "available memory" in lower:
        return DeviceMemoryError(f"{what}: the GPU's memory is full ({line}); use smaller batches or free some")
    return EngineError(f"{what}: {line}")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _dtypes(arguments: Iterable[Any]) -> dict[str, np.dtype]:
    found = {}
    for argument in arguments:
        if argument.type not in _DTYPES:
            raise EngineError(
                f"the graph's {argument.name} is a {argument.type}, which cannot be bound: export it again"
            )
        found[argument.name] = np.dtype(_DTYPES[argument.type])
    return found


def _check(kind: str, arrays: Mapping[str, DeviceArray], dtypes: Mapping[str, np.dtype]) -> None:
    if arrays.keys() != dtypes.keys():
        raise EngineError(f"the graph has the {kind}s {', '.join(dtypes)}, but was given {', '.join(arrays) or 'none'}")
    for name, array in arrays.items():
        if array.dtype != dtypes[name]:
            raise EngineError(f"the graph's {kind} {name} is {dtypes[name]}, but {array.dtype} was given")
