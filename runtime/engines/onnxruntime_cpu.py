"""Graphs on a CPU through ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vocabseg.runtime.errors import EngineError

_HALF = "tensor(float16)"


class OnnxRuntimeGraph:
    """One ONNX graph in a session of the CPU execution provider. Inputs take the graph's type, outputs are float32.

    FP16 graphs (their rounding form, `export/half/rounding.py`) are for checking: they are no faster than float32 ones.
    Nor are those with E4M3, which are run `literal`: rounded where they say so, computed in float32. (The extended
    optimisations of ONNX Runtime 1.32 turn such a graph into nonsense.)
    """

    def __init__(self, path: Path, threads: int, literal: bool = False):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Otherwise threads of the network that has just run keep the cores from the next stage for a while: with the
        # demo model on two cores, an image took three times as long.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # The arena keeps the largest batch it has seen for ever; crops come in chunks of one size, so little is lost.
        options.enable_cpu_mem_arena = False
        if literal:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions derive from Exception alone
            raise EngineError(f"ONNX Runtime cannot open {path}: {_first_line(error)}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._half = [argument.name for argument in self._session.get_inputs() if argument.type == _HALF]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = {name: array.astype(np.float16) if name in self._half else array for name, array in inputs.items()}
        try:
            results = self._session.run(self._outputs, feed)
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise EngineError(f"ONNX Runtime cannot run on {shapes}: {_first_line(error)}") from error
        return {
            name: result.astype(np.float32) if result.dtype == np.float16 else result
            for name, result in zip(self._outputs, results, strict=True)
        }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
