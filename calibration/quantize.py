"""A float32 graph -> the same with QuantizeLinear and DequantizeLinear where it computes in eight bits.

The placement is the one that both TensorRT 11 and OpenVINO turn into eight-bit kernels: on the inputs of a product with
constant weights and nowhere else, symmetric (zero point 0), one scale per activation and one per output channel of the
weights, which are stored in eight bits. Biases, attention products, normalisation, softmax and activations stay float.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.calibration.errors import CalibrationError
from vocabseg.calibration.scales import Scheme, activation_scales, quantised_weights, weight_scales
from vocabseg.calibration.smooth import smooth
from vocabseg.calibration.statistics import Statistics
from vocabseg.calibration.targets import Target, load_graph, targets
from vocabseg.export.graph.files import save_graph
from vocabseg.runtime.bundle.manifest import GraphRecord

# Operations on E4M3 began with opset 19; ONNX Runtime runs them from 19 on, TensorRT reads up to 24.
FP8_OPSET = 21


def write_quantised(
    source: str | Path, target: str | Path, scheme: Scheme, statistics: Mapping[str, Statistics], **fields: Any
) -> GraphRecord:
    """Write the float32 graph at `source` quantised at `target`; `fields` are further ones of its record.

    Raises CalibrationError for a graph that is quantised already or in which nothing could be, and ExportError where
    the result is not valid.
    """
    model = load_graph(source)
    found = targets(model)
    if scheme.smooth is not None:
        statistics = smooth(model, found, statistics, scheme)
    chosen = quantise(model, found, scheme, statistics)
    if not chosen:
        raise CalibrationError(f"{source} has no product with constant weights whose ranges are known: nothing to do")
    return save_graph(model, Path(target), model.opset_imports[""], dtype=scheme.kind, **fields)


def quantise(model: Any, found: list[Target], scheme: Scheme, statistics: Mapping[str, Statistics]) -> list[Target]:
    """Change a model; returns the targets that are quantised now."""
    scales = activation_scales(found, statistics, scheme)
    chosen = [target for target in found if target.layer not in scheme.high and target.activation in scales]
    editor = _Editor(model, scheme.kind)
    for target in chosen:
        editor.quantise(target, scales[target.activation])
    editor.finish()
    return chosen


class _Editor:
    """Puts pairs of QuantizeLinear and DequantizeLinear into a graph; one pair per activation, shared by its users."""

    def __init__(self, model: Any, kind: str):
        self.graph = model.graph
        self.kind = kind
        self.nodes = {node.name: node for node in self.graph}
        self.activations: dict[str, Any] = {}
        self.weights: dict[tuple[str, int], Any] = {}

    def quantise(self, target: Target, scale: np.float32) -> None:
        node = self.nodes[target.node]
        activation = self._activation(node, scale)
        weight = self._weight(node, target)
        node.replace_input_with(0, activation)
        node.replace_input_with(1, weight)

    def finish(self) -> None:
        """Drop the float weights that nothing uses any more, and put the new nodes in order."""
        initializers = self.graph.initializers
        for name in [name for name, value in initializers.items() if not value.uses() and not value.is_graph_output()]:
            del initializers[name]
        self.graph.sort()

    def _activation(self, node: Any, scale: np.float32) -> Any:
        value = node.inputs[0]
        if value.name not in self.activations:
            parts = [self._constant(f"{value.name}_scale", np.array(scale))]
            parts.append(self._constant(f"{value.name}_zero", self._zero()))
            quantised = self._insert(node, "QuantizeLinear", [value, *parts], f"{value.name}_quantised")
            self.activations[value.name] = self._insert(
                node, "DequantizeLinear", [quantised, *parts], f"{value.name}_dequantised"
            )
        return self.activations[value.name]

    def _weight(self, node: Any, target: Target) -> Any:
        key = (target.weight, target.axis)
        if key not in self.weights:
            array = node.inputs[1].const_value.numpy()
            scales = weight_scales(array, target.axis, self.kind)
            stored = quantised_weights(array, scales, target.axis, self.kind)
            parts = [self._constant(f"{target.weight}_{self.kind}", stored)]
            parts.append(self._constant(f"{target.weight}_scale", scales))
            parts.append(self._constant(f"{target.weight}_zero", np.broadcast_to(self._zero(), scales.shape).copy()))
            self.weights[key] = self._insert(
                node, "DequantizeLinear", parts, f"{target.weight}_dequantised", axis=target.axis
            )
        return self.weights[key]

    def _zero(self) -> np.ndarray:
        if self.kind == "int8":
            return np.array(0, np.int8)
        import ml_dtypes

        return np.array(0, ml_dtypes.float8_e4m3fn)

    def _constant(self, name: str, array: np.ndarray) -> Any:
        import onnx_ir

        tensor = onnx_ir.Tensor(array, name=name)
        value = onnx_ir.Value(
            name=name, const_value=tensor, shape=onnx_ir.Shape(array.shape), type=onnx_ir.TensorType(tensor.dtype)
        )
        self.graph.register_initializer(value)
        return value

    def _insert(self, before: Any, operation: str, inputs: list[Any], output: str, **attributes: Any) -> Any:
        import onnx_ir

        node = onnx_ir.node(operation, inputs, attributes=attributes or None, name=f"{output}_node")
        node.outputs[0].name = output
        self.graph.insert_before(before, node)
        return node.outputs[0]
