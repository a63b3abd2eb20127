"""Whether TensorRT's ONNX parser takes a graph, told from the parser's published list before anything is parsed."""

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from vocabseg.export.tensorrt.restrictions import RESTRICTIONS, Node

LIST = "operators.toml"

# The names of the list for ONNX's element types; a type that is not here is none that TensorRT takes.
TYPES = {
    "FLOAT": "FP32",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "FLOAT8E4M3FN": "FP8",
    "FLOAT4E2M1": "FP4",
    "INT4": "INT4",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "BOOL": "BOOL",
}

# The list's types are those of an operator's data. For most operators the first input and the first output; where one
# of the two has a type of its own (sizes, indices, conditions), only the other.
_FIRST_INPUT_ONLY = frozenset(
    {"ArgMax", "ArgMin", "DequantizeLinear", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less"}
    | {"LessOrEqual", "NonMaxSuppression", "NonZero", "QuantizeLinear", "Shape", "Size"}
)
_FIRST_OUTPUT_ONLY = frozenset({"Constant", "ConstantOfShape", "EyeLike", "If", "Loop", "OneHot", "Where"})
# Made only by QuantizeLinear (or stored as constants), consumed only by DequantizeLinear.
QUANTISED = frozenset({"INT8", "FP8", "FP4", "INT4"})
# The last three take INT8 or FP8 by the list; zero points of QuantizeLinear have the type of its output.
_TAKE_QUANTISED = frozenset({"DequantizeLinear", "QuantizeLinear", "Attention", "Gelu", "Mean"})


class ParserList(NamedTuple):
    """The published list: operator -> types, since which TensorRT, what is listed as unsupported, and opsets."""

    tensorrt: str
    types: Mapping[str, frozenset[str]]
    since: Mapping[str, tuple[int, ...]]
    unsupported: frozenset[str]
    opsets: range


@cache
def parser_list() -> ParserList:
    """The list as it stands in `tensorrt_operators.toml`, which names its source."""
    data = tomllib.loads((files("vocabseg.export.tensorrt") / LIST).read_text())
    types = {name: frozenset(group["types"]) for group in data["group"] for name in group["operators"].split()}
    return ParserList(
        tensorrt=data["tensorrt"],
        types=types,
        since={name: _version(text) for name, text in data["since"].items()},
        unsupported=frozenset(data["unsupported"]["operators"].split()),
        opsets=range(data["opset_min"], data["opset_max"] + 1),
    )


def check_operators(path: str | Path, tensorrt: str | None = None) -> list[str]:
    """What in the ONNX graph at `path` TensorRT's parser does not take, one line each; empty where it takes all.

    Looked at are operators, the types of their data, the attributes and inputs that the list restricts, and the opset.
    `tensorrt` is the version that will parse ("10.13.3.9"); without it the newest that the list knows. Weights are not
    loaded.
    """
    import onnx

    path = Path(path)
    known = parser_list()
    model = onnx.load(path, load_external_data=False)
    problems = []
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset not in known.opsets:
        problems.append(
            f"{path.name}: opset {opset} is none that TensorRT {known.tensorrt} parses "
            f"({known.opsets.start} to {known.opsets.stop - 1}): export with --opset {known.opsets.stop - 1}"
        )
    if model.functions:
        names = ", ".join(function.name for function in model.functions[:3])
        problems.append(f"{path.name}: it has local functions ({names}), which are not looked into: inline them")
    version = None if tensorrt is None else _version(tensorrt)
    for node in _nodes(model):
        problems += [f"{path.name}: {node.label}: {text}" for text in _check_node(node, version)]
    return problems


def _check_node(node: Node, version: tuple[int, ...] | None) -> Iterator[str]:
    known = parser_list()
    operator = node.operator
    if node.domain not in ("", "ai.onnx"):
        yield f"the operator is of the domain {node.domain}, which TensorRT does not know"
        return
    if operator not in known.types:
        listed = "is not supported by" if operator in known.unsupported else "is unknown to"
        yield f"{operator} {listed} TensorRT's parser ({known.tensorrt})"
        return
    since = known.since.get(operator)
    if since is not None and version is not None and version[: len(since)] < since:
        yield f"{operator} needs TensorRT {'.'.join(map(str, since))}, this is {'.'.join(map(str, version))}"
    for name in _data_values(node):
        found = node.element_type(name)
        if found is not None and TYPES.get(found) not in known.types[operator]:
            allowed = ", ".join(sorted(known.types[operator]))
            yield f"{operator} on {found} ({name!r}): it takes {allowed}"
    if operator not in _TAKE_QUANTISED:
        for name in node.inputs:
            found = node.element_type(name)
            if found is not None and TYPES.get(found) in QUANTISED:
                yield f"{operator} reads {name!r} in {found}, which only DequantizeLinear may"
    yield from RESTRICTIONS.get(operator, _nothing)(node)


def _data_values(node: Node) -> list[str]:
    values = []
    if node.operator not in _FIRST_OUTPUT_ONLY:
        values += node.inputs[:1]
    if node.operator not in _FIRST_INPUT_ONLY:
        values += node.outputs[:1]
    return list(dict.fromkeys(value for value in values if value))


def _nodes(model: Any) -> Iterator[Node]:
    """Every node of the graph and of the graphs inside it, with the types and ranks that ONNX infers."""
    import onnx
    from onnx import TensorProto

    inferred = onnx.shape_inference.infer_shapes(model)
    types: dict[str, str] = {}
    ranks: dict[str, int] = {}
    constants: dict[str, Any] = {}

    def look_at(graph: Any) -> Iterator[Node]:
        for tensor in graph.initializer:
            constants[tensor.name] = tensor
            types[tensor.name] = TensorProto.DataType.Name(tensor.data_type)
            ranks[tensor.name] = len(tensor.dims)
        for value in (*graph.input, *graph.output, *graph.value_info):
            tensor_type = value.type.tensor_type
            if tensor_type.elem_type:
                types[value.name] = TensorProto.DataType.Name(tensor_type.elem_type)
            if tensor_type.HasField("shape"):
                ranks[value.name] = len(tensor_type.shape.dim)
        for node in graph.node:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            if node.op_type == "Constant" and "value" in attributes:
                constants[node.output[0]] = attributes["value"]
            elif node.op_type == "Constant":
                constants[node.output[0]] = next(iter(attributes.values()), None)
            yield Node(node, attributes, types, ranks, constants)
            for value in attributes.values():
                if isinstance(value, onnx.GraphProto):
                    yield from look_at(value)

    yield from look_at(inferred.graph)


def _nothing(node: Node) -> Iterator[str]:
    return iter(())


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
