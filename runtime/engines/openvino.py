"""Graphs on a CPU through OpenVINO."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.engines.openvino_parts import BETWEEN, first_layers
from vocabseg.runtime.errors import EngineError

# OpenVINO runs float32 graphs in bfloat16 by default if the CPU can, so the precision is always set explicitly.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoGraph:
    """One ONNX graph compiled for the CPU."""

    def __init__(self, path: Path, precision: str, threads: int, batched: bool = False):
        """`batched`: inputs and outputs hold many samples along their first axis.

        The two halves of such a batch run in parallel on half the threads each, so that threads wait less for each
        other: ViT-B/16 on two cores takes 3 % less time in float32 and bfloat16, 11 % less in int8.

        In bfloat16, the first layers stay in float32 (`first_layers` says why).
        """
        import openvino

        check_precision(precision)
        streams = 2 if batched and threads % 2 == 0 else 1
        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}
        hints["INFERENCE_NUM_THREADS"] = threads
        if precision == "int8" and products_saturate():
            _tell_saturation()
            hints["LP_TRANSFORMS_MODE"] = "NO"  # quantised values, float32 products: the graph as it is written
        try:
            core = openvino.Core()
            model = core.read_model(path)
            # Once compiled, an output also has the names of what only passed it on.
            outputs = [output.any_name for output in model.outputs]
            *first, model = first_layers(model) if precision == "bfloat16" else [model]
            self._parts = [_Part(core, part, [BETWEEN], "f32", hints, streams) for part in first]
            self._parts.append(_Part(core, model, outputs, _hint(precision), hints, streams))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot open {path}: {_first_line(error)}") from error

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs: dict[str, np.ndarray] = {}
        try:
            for part in self._parts:
                outputs = part.run({**inputs, **outputs})
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise EngineError(f"OpenVINO cannot run on {shapes}: {_first_line(error)}") from error
        return outputs


class _Part:
    """A compiled model with the names of its outputs, and a request for each of its streams."""

    def __init__(
        self, core: Any, model: Any, outputs: Sequence[str], precision: str, hints: Mapping[str, Any], streams: int
    ):
        self._inputs, self._outputs = [one.any_name for one in model.inputs], outputs
        self._compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision, **hints})
        self._requests = [self._compiled.create_infer_request() for _ in range(streams)]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = {name: inputs[name] for name in self._inputs if name in inputs}
        samples = len(next(iter(own.values())))
        if len(self._requests) == 1 or samples < 2:
            results = [self._requests[0].infer(own, share_inputs=True)]
        else:
            halves = (slice(None, samples // 2), slice(samples // 2, None))
            results = self._run_side_by_side([{name: x[half] for name, x in own.items()} for half in halves])
        if len(results) == 1:
            return {name: results[0][index] for index, name in enumerate(self._outputs)}
        return {name: np.concatenate([found[index] for found in results]) for index, name in enumerate(self._outputs)}

    def _run_side_by_side(self, parts: list[dict[str, np.ndarray]]) -> list[Any]:
        with ExitStack() as started:  # waits for started requests, whatever else fails
            for request, part in zip(self._requests, parts, strict=True):
                request.start_async(part, share_inputs=True)
                started.callback(request.wait)
        return [request.results for request in self._requests]


def check_precision(precision: str) -> None:
    """Raise EngineError where OpenVINO would compute in another precision than the one asked for, and say nothing."""
    if precision == "bfloat16" and "BF16" not in _capabilities():
        raise EngineError(
            "this CPU has no bfloat16 arithmetic (it needs AVX-512 or AMX), and OpenVINO would compute float32: "
            "use the precision float32"
        )


@cache
def products_saturate() -> bool:
    """Whether OpenVINO's INT8 products are wrong on this CPU: found out by computing one.

    Without VNNI, AVX2 and AVX-512 add pairs of 8-bit products in 16 bits, which overflow and are cut off at 32767. For
    the product of large values alone that is half the right sum.
    """
    import openvino
    from openvino import opset8

    rows = np.ones((1, 64), np.float32)
    given = opset8.parameter(rows.shape, np.float32)
    low, high = (opset8.constant(np.float32(value)) for value in (-128 / 127, 1))
    quantised = opset8.fake_quantize(given, low, high, low, high, 256)
    integers = opset8.convert(opset8.constant(np.full((rows.shape[1], 8), 127, np.int8)), np.float32)
    weights = opset8.multiply(integers, opset8.constant(np.float32(1 / 127)))
    model = openvino.Model([opset8.matmul(quantised, weights, False, False)], [given], "saturation")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (found,) = compiled([rows]).values()
    return not np.allclose(found, rows.sum(), rtol=0.01)


@cache
def _tell_saturation() -> None:
    warnings.warn(
        "this CPU has no VNNI, and OpenVINO's INT8 products would overflow: it computes INT8 graphs in float32, which "
        "is right and no faster; the engine onnxruntime computes them in INT8",
        RuntimeWarning,
        stacklevel=4,
    )


@cache
def _capabilities() -> frozenset[str]:
    import openvino

    return frozenset(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _hint(precision: str) -> str:
    """The inference precision; the float parts of a quantised graph use the fastest one on this CPU."""
    if precision != "int8":
        return _PRECISIONS[precision]
    return "bf16" if "BF16" in _capabilities() else "f32"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
