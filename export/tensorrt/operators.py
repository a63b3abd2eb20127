"""Whether TensorRT's ONNX parser takes a graph: an early warning, on machines without TensorRT too.

The facts are those of https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md as of TensorRT 11.2, for the
operators that graphs of image and text encoders contain. Weights are not read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

OPSETS = range(9, 25)
_NAMES = """
    Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp
    Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpNormalization MatMul Max MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pad Pow
    QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tanh Tile Transpose Trilu Unsqueeze Where
"""
OPERATORS = frozenset(_NAMES.split())
SINCE = {"Attention": (10, 14), "RMSNormalization": (10, 15), "Swish": (11, 2)}
TYPES = frozenset(("FLOAT", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "INT8", "INT32", "INT64", "UINT8", "BOOL"))
QUANTISED = frozenset(("INT8", "FLOAT8E4M3FN"))
# Inputs that must be known when the engine is built.
CONSTANT_INPUTS = dict.fromkeys(("CumSum", "Squeeze", "Unsqueeze", *(o for o in OPERATORS if "Reduce" in o)), 1)
# Attributes and the values that are taken.
ATTRIBUTES: dict[str, dict[str, tuple[Any, ...]]] = {
    "Attention": {"q_num_heads": (), "softcap": (0.0,), "qk_matmul_output_mode": (0,)},  # no heads: four axes
    "AveragePool": {"dilations": ([1, 1], [1, 1, 1])},
    "MaxPool": {"dilations": ([1, 1], [1, 1, 1])},
    "Resize": {
        "mode": (b"nearest", b"linear"),
        "antialias": (0,),
        "coordinate_transformation_mode": (b"half_pixel", b"pytorch_half_pixel", b"asymmetric", b"align_corners"),
        "keep_aspect_ratio_policy": (b"stretch",),
    },
}
ONE_OUTPUT = ("Attention", "LayerNormalization", "MaxPool", "Dropout")


def check_operators(path: str | Path, tensorrt: str | None = None) -> list[str]:
    """What in the ONNX graph at `path` TensorRT's parser does not take, one line each; empty if it takes all.

    `tensorrt` is the version that will parse ("10.13.3.9"), by default the newest.
    """
    import onnx

    path = Path(path)
    model = onnx.load(path, load_external_data=False)
    problems = []
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        first, last = OPSETS[0], OPSETS[-1]
        problems.append(f"opset {opset} is not one of {first} to {last}, which it parses: export with --opset {last}")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {node.output[0]: None for node in model.graph.node if node.op_type == "Constant"}
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    problems += [f"{name!r} is {_type(number)}" for name, number in types.items() if number and not _taken(number)]
    version = None if tensorrt is None else _version(tensorrt)
    for node in model.graph.node:
        label = f"node {node.name or node.output[0]!r}: {node.op_type}"
        problems += [f"{label} {problem}" for problem in _problems(node, constants, version)]
    return [f"{path.name}: {problem}" for problem in problems]


def _problems(node: Any, constants: Mapping[str, Any], version: tuple[int, ...] | None) -> Iterator[str]:
    import onnx

    operator = node.op_type
    if node.domain not in ("", "ai.onnx"):
        yield f"is of the domain {node.domain}, which TensorRT does not know"
        return
    if operator not in OPERATORS:
        yield "is not on the list of operators that TensorRT is known to take (export/tensorrt/operators.py)"
        return
    since = SINCE.get(operator, ())
    if version is not None and version[: len(since)] < since:
        yield f"needs TensorRT {'.'.join(map(str, since))}, this is {'.'.join(map(str, version))}"
    given = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    for name, taken in ATTRIBUTES.get(operator, {}).items():
        if name in given and given[name] not in taken:
            value = given[name].decode() if isinstance(given[name], bytes) else given[name]
            yield f"is not supported with {name}={value}"
    if operator == "Cast" and not _taken(given["to"]):
        yield f"is not supported to {_type(given['to'])}"
    if operator == "Attention" and any(node.input[4:]):
        yield "is not supported with more inputs than query, key, value and mask"
    if operator in ONE_OUTPUT and any(node.output[1:]):
        yield "is supported with its first output alone"
    place = CONSTANT_INPUTS.get(operator, len(node.input))
    for name in node.input[place : place + 1]:
        if name and name not in constants:
            yield f"needs a constant as input {place + 1}, {name!r} is computed"
    if operator in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
        zero = constants.get(node.input[2])
        if zero is not None and _type(zero.data_type) not in QUANTISED:
            yield f"is not supported with {_type(zero.data_type)}, only with {' and '.join(sorted(QUANTISED))}"
        elif zero is not None and not zero.external_data and np.any(onnx.numpy_helper.to_array(zero) != 0):
            yield "needs a zero point of 0: quantise symmetrically"


def _type(number: int) -> str:
    import onnx

    return onnx.TensorProto.DataType.Name(number)


def _taken(number: int) -> bool:
    return _type(number) in TYPES


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
