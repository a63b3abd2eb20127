"""Graphs on a CPU through OpenVINO."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.errors import EngineError

# OpenVINO runs float32 graphs in bfloat16 by default where the CPU can, so the precision is always stated.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoGraph:
    """One ONNX graph compiled for the CPU."""

    def __init__(self, path: Path, precision: str, threads: int):
        import openvino

        try:
            core = openvino.Core()
            self._compiled = core.compile_model(
                core.read_model(path),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": _hint(core, precision),
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_NUM_THREADS": threads,
                },
            )
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot open {path}: {_first_line(error)}") from error
        self._request = self._compiled.create_infer_request()
        self._outputs = [output.any_name for output in self._compiled.outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            results = self._request.infer(dict(inputs), share_inputs=True)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise EngineError(f"OpenVINO cannot run on {shapes}: {_first_line(error)}") from error
        return {name: results[index] for index, name in enumerate(self._outputs)}


def _hint(core: Any, precision: str) -> str:
    """What a graph computes in; the float parts of a quantised one take what is fastest on this CPU."""
    if precision != "int8":
        return _PRECISIONS[precision]
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
