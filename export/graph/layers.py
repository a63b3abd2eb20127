"""The model's own names of a graph's layers. The exporter keeps them in the names of parameters only."""

import re
from pathlib import Path
from typing import Any

# Operations of a layer: products, and normalisation. What may stand between a parameter and the node that reads it.
WITH_PARAMETERS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LayerNormalization", "GroupNormalization")
BETWEEN = ("DequantizeLinear", "QuantizeLinear", "Cast")


def is_constant(value: Any) -> bool:
    """Whether a value is an initializer whose content is known."""
    return value is not None and value.is_initializer() and value.const_value is not None


def layer_of(node: Any) -> str | None:
    """The module that a node was exported from, such as "blocks.3.mlp.c_fc"; None if no parameter's name tells.

    A linear layer's weight is transposed and loses its name; then the bias that is added behind has it.
    """
    names = _parameters(node.inputs[1:])
    for output in node.outputs:
        for user in (use.node for use in output.uses()):
            if user.op_type == "Add":
                names += _parameters(user.inputs)
    for name in names:
        stem = re.sub(r"(\.(weight|bias)(_.*)?|_bias)$", "", name)
        if not re.match(r"val_\d+", stem):
            return stem
    return None


def layers(graph: Path) -> dict[str, str]:
    """Node name -> the module it was exported from, for the nodes of the ONNX graph at `graph` that have parameters."""
    import onnx
    import onnx_ir

    model = onnx_ir.from_proto(onnx.load(graph, load_external_data=False))
    found = {
        str(node.name): layer_of(node)
        for node in model.graph
        if node.op_type in WITH_PARAMETERS and _parameters(node.inputs[1:])
    }
    return {name: layer for name, layer in found.items() if layer is not None}


def _parameters(values: Any) -> list[str]:
    """The names of those values that are parameters, in other types or quantised too."""
    names = []
    for value in values:
        while value is not None and value.producer() is not None and value.producer().op_type in BETWEEN:
            value = value.producer().inputs[0]
        if is_constant(value):
            names.append(value.name)
    return names
