"""Graphs on a CPU through ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vocabseg.runtime.errors import EngineError

_HALF = "tensor(float16)"


class OnnxRuntimeGraph:
    """One ONNX graph in a session of the CPU execution provider. Inputs are cast to the graph's types, outputs float32.

    FP16 graphs (in the rounding form of `export/half/rounding.py`) are for checks: they are no faster than float32. Nor
    are quantised graphs that run `literal`: rounded where the graph says so, computed in float32. Graphs with E4M3
    always do. (The extended optimisations of ONNX Runtime 1.32 break them.)
    """

    def __init__(self, path: Path, threads: int, literal: bool = False):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what goes wrong is raised
        # Otherwise the threads of the network that has just run keep spinning and slow down the next stage: with the
        # demo model on two cores, an image took three times as long.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # The arena would hold memory for its largest batch forever; crops come in chunks of one size: little is lost.
        options.enable_cpu_mem_arena = False
        # Without VNNI its INT8 products of signed weights would overflow 16 bits (no effect on other CPUs).
        options.add_session_config_entry("session.x64quantprecision", "1")
        if literal:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions derive directly from Exception
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
