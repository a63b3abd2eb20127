"""The nodes of a graph that may compute in eight bits: linear ones with constant weights, by the model's own names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vocabseg.calibration.failures import CalibrationError
from vocabseg.export.graph.layers import is_constant, layer_of
from vocabseg.export.graph.onnx_file import mapped_weight

# Products of two activations (attention) stay float: both sides would need an activation's scale, and they are a small
# share of the work.
LINEAR = ("Conv", "MatMul", "Gemm")
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
# With fewer weights a node takes no time or space worth saving, and its error may be large.
SMALLEST = 64


@dataclass(frozen=True)
class LinearNode:
    """A Conv, MatMul or Gemm with constant weights.

    Attributes:
        node: the node's name, unique in its graph.
        layer: the module it was exported from, such as "blocks.3.mlp.c_fc".
        block: the part of the model it belongs to, such as "blocks.3"; sensitivity is measured by block.
        activation: the tensor that is multiplied.
        axis: the weights' axis of output channels.
        size: how many weights it has.
    """

    node: str
    layer: str
    block: str
    activation: str
    axis: int
    size: int


def load_graph(path: str | Path) -> Any:
    """The onnx_ir model at `path`; raises CalibrationError where it is quantised already."""
    import onnx
    import onnx_ir

    path = Path(path)
    model = onnx_ir.from_proto(onnx.load(path, load_external_data=False))
    onnx_ir.external_data.set_base_dir(model.graph, path.parent)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            value.const_value = mapped_weight(path, value.const_value)
    for node in model.graph:
        if node.op_type in QUANTISED or node.op_type.startswith("QLinear"):
            raise CalibrationError(
                f"{path} is quantised already ({node.op_type} at {node.name}): calibrate the float32 graph instead"
            )
    return model


def linear_nodes(model: Any) -> list[LinearNode]:
    """The nodes of a graph that may be quantised, in the graph's order."""
    found = []
    for node in model.graph:
        if node.domain or node.op_type not in LINEAR:
            continue
        weight = node.inputs[1]
        if not is_constant(weight) or weight.const_value.size < SMALLEST or weight.const_value.dtype.name != "FLOAT":
            continue
        layer = layer_of(node) or str(node.name)
        size = int(weight.const_value.size)
        found.append(LinearNode(node.name, layer, block_of(layer), node.inputs[0].name, _output_axis(node), size))
    return found


def block_of(layer: str) -> str:
    """The part of the model a layer belongs to: its name up to the last number, or else its first three words.

    "blocks.3.mlp.c_fc" -> "blocks.3"; "backbone.res4.2.conv1" -> "backbone.res4.2".
    """
    match = re.match(r"(.*?\D\.\d+(?:\.\d+)?)\.", layer)
    return match.group(1) if match else ".".join(layer.split(".")[:3])


def blocks(nodes: Iterable[LinearNode]) -> dict[str, list[LinearNode]]:
    """Nodes by block, in the graph's order."""
    grouped: dict[str, list[LinearNode]] = {}
    for node in nodes:
        grouped.setdefault(node.block, []).append(node)
    return grouped


def ends(model: Any) -> tuple[str, ...]:
    """The layers next to a graph's inputs and outputs: the patch embedding or first Conv, and the last projections."""
    found = linear_nodes(model)
    nodes = {node.name: node for node in model.graph}
    inputs = {value.name for value in model.graph.inputs}
    names = {node.node for node in found}
    first = [node.layer for node in found if node.activation in inputs]
    last = [node.layer for node in found if _reaches_output(nodes[node.node], names)]
    return tuple(dict.fromkeys([*first, *last]))


def _reaches_output(node: Any, linear: set[str]) -> bool:
    """Whether a node's output comes to a graph's output without another linear node on the way."""
    waiting, seen = [node], {node.name}
    while waiting:
        for output in waiting.pop().outputs:
            if output.is_graph_output():
                return True
            for user in (use.node for use in output.uses()):
                if user.name not in seen and user.name not in linear:
                    seen.add(user.name)
                    waiting.append(user)
    return False


def _output_axis(node: Any) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    return 0 if transposed else node.inputs[1].const_value.shape.rank() - 1
