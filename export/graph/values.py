"""The type of every value of a graph, by the operations' own definitions (onnx.defs).

ONNX's shape inference stops at GroupNormalization, which is defined as a function: nothing behind it gets a type.
"""

from typing import Any

import numpy as np

from vocabseg.export.graph.editor import MICROSOFT, attribute, set_attribute
from vocabseg.export.graph.onnx_file import ExportError

# Inputs that ONNX Runtime's own operations take in float32 only; all others have the type of the first.
MICROSOFT_FLOAT32 = {"GroupNorm": (1, 2)}


def infer_types(model: Any) -> None:
    """Give every value of an onnx_ir model its type; raises ExportError for an operation that leaves it open."""
    import onnx_ir

    version = model.graph.opset_imports[""]
    for value in model.graph.initializers.values():
        value.type = onnx_ir.TensorType(value.const_value.dtype)
    for node in model.graph:
        if node.domain == MICROSOFT:
            types = [node.inputs[0].dtype] * len(node.outputs)
        else:
            schema = _schema(node, version)
            known = {
                _formal(schema.inputs, index).type_str: value.dtype
                for index, value in enumerate(node.inputs)
                if value is not None
            }
            parameters = [_formal(schema.outputs, index) for index in range(len(node.outputs))]
            types = [known.get(one.type_str) or _fixed_type(node, one.type_str, version) for one in parameters]
        for value, dtype in zip(node.outputs, types, strict=True):
            value.type = onnx_ir.TensorType(dtype)


def takes_half(node: Any, index: int, version: int, low: str = "float16") -> bool:
    """Whether an input of a node can be of the type `low`; "scales" of Resize, for one, are always float32."""
    if node.domain == MICROSOFT:
        return index not in MICROSOFT_FLOAT32.get(node.op_type, ())
    return f"tensor({low})" in _allowed(node, _formal(_schema(node, version).inputs, index).type_str, version)


def gives_half(node: Any, index: int, version: int, low: str = "float16") -> bool:
    """Whether an output of a node can be of the type `low`; "Mean" of LayerNormalization is always float32."""
    if node.domain == MICROSOFT:
        return True
    return f"tensor({low})" in _allowed(node, _formal(_schema(node, version).outputs, index).type_str, version)


def set_output_type(node: Any, dtype: Any) -> None:
    """Change the type of a node's output, if an attribute of the node sets it."""
    if node.op_type == "Cast":
        set_attribute(node, "to", int(dtype))
    elif node.op_type == "ConstantOfShape":
        given = attribute(node, "value")
        content = np.zeros(1, np.float32) if given is None else given.numpy()
        set_attribute(node, "value", content.astype(dtype.numpy()))


def _schema(node: Any, version: int) -> Any:
    """The definition of a node's operation in an opset."""
    import onnx.defs

    try:
        return onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise ExportError(f"opset {version} has no operation {name}: its types are not known") from None


def _formal(parameters: Any, index: int) -> Any:
    """The formal parameter of an actual one; the last one may be variadic."""
    return parameters[min(index, len(parameters) - 1)]


def _allowed(node: Any, parameter: str, version: int) -> list[str]:
    """The types that a parameter may have, such as "tensor(float16)"."""
    constraints = {one.type_param_str: one.allowed_type_strs for one in _schema(node, version).type_constraints}
    return list(constraints.get(parameter, [parameter]))


def _fixed_type(node: Any, parameter: str, version: int) -> Any:
    """The type of an output that is not that of an input."""
    import onnx_ir

    allowed = _allowed(node, parameter, version)
    if len(allowed) == 1:  # "tensor(int64)"
        return onnx_ir.DataType[allowed[0].removeprefix("tensor(").removesuffix(")").upper()]
    for name in ("to", "dtype", "output_dtype", "stash_type"):
        if name in node.attributes:
            return onnx_ir.DataType(attribute(node, name))
    if node.op_type == "ConstantOfShape":
        given = attribute(node, "value")
        return onnx_ir.DataType.FLOAT if given is None else given.dtype
    if node.op_type in ("LayerNormalization", "RMSNormalization"):  # the default of stash_type
        return onnx_ir.DataType.FLOAT
    raise ExportError(f"the type of the output of {node.op_type} ({node.name}) is not known: use standard operations")
