"""Graphs on a CPU through ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vocabseg.runtime.errors import EngineError


class OnnxRuntimeGraph:
    """One ONNX graph in a session of the CPU execution provider."""

    def __init__(self, path: Path, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # The arena keeps the largest batch it has seen for ever; crops come in chunks of one size, so little is lost.
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions derive from Exception alone
            raise EngineError(f"ONNX Runtime cannot open {path}: {_first_line(error)}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise EngineError(f"ONNX Runtime cannot run on {shapes}: {_first_line(error)}") from error
        return dict(zip(self._outputs, results, strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
