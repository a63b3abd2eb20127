"""A float32 graph -> the same with QuantizeLinear and DequantizeLinear where it computes in eight bits.

The placement is the one that both TensorRT 11 and OpenVINO turn into eight-bit kernels: on the inputs of linear nodes
with constant weights and nowhere else, symmetric (zero point 0), one scale per activation and one per output channel of
the weights, which are stored in eight bits. Biases, attention products, normalisation, softmax and activation functions
stay float.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.calibration.failures import CalibrationError
from vocabseg.calibration.graphs.linear_nodes import LinearNode, linear_nodes, load_graph
from vocabseg.calibration.graphs.scales import Scheme, activation_scales, quantised_weights, to_fp8, weight_scales
from vocabseg.calibration.graphs.smooth import smooth
from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.export.graph.editor import Editor
from vocabseg.export.graph.onnx_file import save_graph
from vocabseg.runtime.bundle.manifest import GraphRecord


def write_quantised(
    source: str | Path, target: str | Path, scheme: Scheme, statistics: Mapping[str, Statistics], **fields: Any
) -> GraphRecord:
    """Quantise the float32 graph at `source` and write it to `target`; `fields` are further ones of its record.

    Raises CalibrationError for a graph that is quantised already or has nothing to quantise, and ExportError where the
    result is not valid.
    """
    model = load_graph(source)
    found = linear_nodes(model)
    if scheme.smooth is not None:
        statistics = smooth(model, found, statistics, scheme)
    scales = activation_scales(found, statistics, scheme)
    chosen = [node for node in found if node.layer not in scheme.high and node.activation in scales]
    if not chosen:
        raise CalibrationError(f"{source} has no product with constant weights whose ranges are known: nothing to do")
    quantiser = _Quantiser(model, scheme.kind)
    for node in chosen:
        quantiser.quantise(node, scales[node.activation])
    quantiser.editor.sweep()
    return save_graph(model, Path(target), dtype=scheme.kind, **fields)


class _Quantiser:
    """Puts pairs of QuantizeLinear and DequantizeLinear into a graph; one pair per activation, shared by its users."""

    def __init__(self, model: Any, kind: str):
        self.editor = Editor(model)
        self.kind = kind
        self.zero = np.array(0, np.int8) if kind == "int8" else to_fp8(np.array(0.0))
        self.nodes = {node.name: node for node in model.graph}
        self.activations: dict[str, Any] = {}
        self.weights: dict[tuple[str, int], Any] = {}

    def quantise(self, linear: LinearNode, scale: np.float32) -> None:
        node = self.nodes[linear.node]
        node.replace_input_with(0, self._activation(node, scale))
        node.replace_input_with(1, self._weight(node, linear))

    def _activation(self, node: Any, scale: np.float32) -> Any:
        value = node.inputs[0]
        if value.name not in self.activations:
            parts = [self._constant(value, "scale", np.array(scale)), self._constant(value, "zero", self.zero)]
            name = f"{value.name}_quantised"
            (quantised,) = self.editor.before(node, "QuantizeLinear", [value, *parts], name=name)
            (back,) = self.editor.before(
                node, "DequantizeLinear", [quantised, *parts], name=f"{value.name}_dequantised"
            )
            self.activations[value.name] = back
        return self.activations[value.name]

    def _weight(self, node: Any, linear: LinearNode) -> Any:
        value = node.inputs[1]
        key = (value.name, linear.axis)
        if key not in self.weights:
            array = value.const_value.numpy()
            scales = weight_scales(array, linear.axis, self.kind)
            parts = [
                self._constant(value, self.kind, quantised_weights(array, scales, linear.axis, self.kind)),
                self._constant(value, "scale", scales),
                self._constant(value, "zero", np.broadcast_to(self.zero, scales.shape)),
            ]
            axis, name = {"axis": linear.axis}, f"{value.name}_dequantised"
            (self.weights[key],) = self.editor.before(node, "DequantizeLinear", parts, axis, name=name)
        return self.weights[key]

    def _constant(self, of: Any, what: str, array: np.ndarray) -> Any:
        return self.editor.constant(array, f"{of.name}_{what}")
