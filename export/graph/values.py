"""The type of every value of a graph, by the operations' own definitions (onnx.defs).

ONNX's shape inference stops at GroupNormalization, which is defined as a function: everything behind it has no type.
"""

from typing import Any

from vocabseg.export.graph.editor import MICROSOFT
from vocabseg.export.graph.files import ExportError


def infer_types(model: Any) -> None:
    """Give every value of an onnx_ir model its type; raises ExportError for an operation that leaves it open."""
    import onnx_ir

    version = model.graph.opset_imports[""]
    for value in model.graph.initializers.values():
        value.type = onnx_ir.TensorType(value.const_value.dtype)
    for node in model.graph:
        if node.domain == MICROSOFT:
            for value in node.outputs:
                value.type = onnx_ir.TensorType(node.inputs[0].dtype)
            continue
        schema = schema_of(node, version)
        known = {
            formal(schema.inputs, index).type_str: value.dtype
            for index, value in enumerate(node.inputs)
            if value is not None
        }
        for index, value in enumerate(node.outputs):
            parameter = formal(schema.outputs, index).type_str
            value.type = onnx_ir.TensorType(_type(node, parameter, known, _constraints(node, version)))


# Inputs that ONNX Runtime's own operations take in float32 only; all others have the type of the first.
MICROSOFT_FLOAT32 = {"GroupNorm": (1, 2)}


def takes_half(node: Any, index: int, version: int) -> bool:
    """Whether an input of a node can be FP16; "scales" of Resize, for one, are always float32."""
    if node.domain == MICROSOFT:
        return index not in MICROSOFT_FLOAT32.get(node.op_type, ())
    return _half_form(node, formal(schema_of(node, version).inputs, index), version)


def gives_half(node: Any, index: int, version: int) -> bool:
    """Whether an output of a node can be FP16; "Mean" of LayerNormalization, for one, is always float32."""
    return node.domain == MICROSOFT or _half_form(node, formal(schema_of(node, version).outputs, index), version)


def _half_form(node: Any, parameter: Any, version: int) -> bool:
    """Whether an input or output of a node, by its formal parameter, can be FP16."""
    allowed = _constraints(node, version).get(parameter.type_str, [parameter.type_str])
    return "tensor(float16)" in allowed


def schema_of(node: Any, version: int) -> Any:
    """The definition of a node's operation in an opset."""
    import onnx.defs

    try:
        return onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise ExportError(f"opset {version} has no operation {name}: its types are not known") from None


def formal(parameters: Any, index: int) -> Any:
    """The formal parameter of an actual one; the last one may stand for many."""
    return parameters[min(index, len(parameters) - 1)]


def _constraints(node: Any, version: int) -> dict[str, Any]:
    return {one.type_param_str: one.allowed_type_strs for one in schema_of(node, version).type_constraints}


def _type(node: Any, parameter: str, known: dict[str, Any], constraints: dict[str, Any]) -> Any:
    import onnx_ir

    if parameter in known:
        return known[parameter]
    allowed = constraints.get(parameter, [parameter])
    if len(allowed) == 1:  # "tensor(int64)"
        return onnx_ir.DataType[next(iter(allowed)).removeprefix("tensor(").removesuffix(")").upper()]
    for name in ("to", "dtype", "output_dtype", "stash_type"):
        if name in node.attributes:
            return onnx_ir.DataType(node.attributes[name].as_int())
    if node.op_type == "ConstantOfShape":
        given = node.attributes.get("value")
        return onnx_ir.DataType.FLOAT if given is None else given.as_tensor().dtype
    if node.op_type in ("LayerNormalization", "RMSNormalization"):  # stash_type where it is not written
        return onnx_ir.DataType.FLOAT
    raise ExportError(f"the type of what {node.op_type} gives ({node.name}) is not known: use standard operations")
