"""Floating-point operations and weight bytes of an ONNX graph, counted from the graph itself for one input size.

Counted are the matrix products in their many guises (Conv, ConvTranspose, Gemm, MatMul, Einsum, Attention), two
operations per multiply-add, as published FLOP tables count; element-wise work is left out.

onnx's own shape inference stops where a size is computed by the graph (Shape, Div, Concat, Reshape). Here the nodes are
walked in order, and small values that are known are computed, so that the next node's shape follows from them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vocabseg.runtime.errors import BundleError

Shape = tuple[int, ...]
# Bytes of an element by ONNX's number of its type.
_ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
# Values of at most so many elements are computed: sizes and positions, no weights.
SMALL = 65_536
# Defined by ONNX as functions of other nodes, for which its inference of one node says nothing: output as first input.
LIKE_FIRST_INPUT = ("GroupNormalization", "LayerNormalization", "RMSNormalization", "Gelu", "Mish", "Swish")


class GraphWork(msgspec.Struct, frozen=True):
    """What one run of a graph computes and reads: operations, and the bytes of its weights."""

    operations: float
    weight_bytes: int


def graph_work(path: Path, inputs: Mapping[str, Sequence[int]]) -> GraphWork:
    """Count the graph at `path` for inputs of these shapes.

    Raises BundleError where a shape that the count needs does not follow from the inputs'.
    """
    model = load_graph(path)
    graph = model.graph
    for value in graph.input:
        rank = len(value.type.tensor_type.shape.dim)
        if value.name in inputs and rank != len(inputs[value.name]):
            raise BundleError(f"{path}: the input {value.name} has {rank} dimensions, not {len(inputs[value.name])}")
    shapes = infer_shapes(model, inputs)
    operations = 0.0
    for node in graph.node:
        count = _COUNTERS.get(node.op_type)
        if count is None:
            continue
        if any(name and name not in shapes for name in (*node.input, *node.output)):
            raise BundleError(f"{path}: the size of {node.op_type} {node.name} does not follow from the inputs' sizes")
        operations += count(node, [shapes[name] for name in node.input if name], shapes[node.output[0]])
    weights = sum(math.prod(tensor.dims) * _ELEMENT_BYTES.get(tensor.data_type, 4) for tensor in graph.initializer)
    return GraphWork(operations, weights)


def load_graph(path: Path) -> Any:
    """The model at `path` without its external weights; raises BundleError where it cannot be read."""
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # whatever protobuf raises
        raise BundleError(f"{path} cannot be read as an ONNX graph: {error}") from None


def infer_shapes(model: Any, inputs: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Shape by name of all values that can be known, when the graph's inputs have the shapes `inputs`."""
    walk = _Walk(model)
    for value in model.graph.input:
        if value.name in inputs:
            walk.add_type(value.name, value.type.tensor_type.elem_type, tuple(inputs[value.name]))
    for node in model.graph.node:
        walk.visit(node)
    return walk.shapes


class _Walk:
    """What is known so far: types with shapes, and values where they are small."""

    def __init__(self, model: Any):
        import onnx

        self.onnx = onnx
        self.imports = list(model.opset_import)
        self.opsets = {entry.domain: entry.version for entry in self.imports}
        self.types: dict[str, Any] = {}
        self.values: dict[str, np.ndarray] = {}
        for tensor in model.graph.initializer:
            self.add_type(tensor.name, tensor.data_type, tuple(tensor.dims))
            inline = tensor.data_location != onnx.TensorProto.EXTERNAL
            if inline and math.prod(tensor.dims) <= SMALL:
                self.values[tensor.name] = onnx.numpy_helper.to_array(tensor)

    @property
    def shapes(self) -> dict[str, Shape]:
        found = {}
        for name, kind in self.types.items():
            dimensions = kind.tensor_type.shape.dim
            if kind.tensor_type.HasField("shape") and all(one.HasField("dim_value") for one in dimensions):
                found[name] = tuple(one.dim_value for one in dimensions)
        return found

    def add_type(self, name: str, element: int, shape: Shape) -> None:
        self.types[name] = self.onnx.helper.make_tensor_type_proto(element, shape)

    def visit(self, node: Any) -> None:
        names = [name for name in node.input if name]
        if all(name in self.values for name in names) and self._compute(node):
            return
        if node.op_type == "Shape" and self._shape_of(node):
            return
        known = {name: self.types[name] for name in names if name in self.types}
        if len(known) < len(set(names)) or node.domain not in self.opsets:
            return
        if node.op_type in LIKE_FIRST_INPUT:
            self.types[node.output[0]] = known[node.input[0]]
            return
        onnx = self.onnx
        schema = onnx.defs.get_schema(node.op_type, self.opsets[node.domain], node.domain)
        data = {name: onnx.numpy_helper.from_array(self.values[name]) for name in names if name in self.values}
        found = onnx.shape_inference.infer_node_outputs(schema, node, known, data, opset_imports=self.imports)
        self.types.update(found)

    def _compute(self, node: Any) -> bool:
        from onnx.reference import ReferenceEvaluator

        feeds = {name: self.values[name] for name in node.input if name}
        if any(value.size > SMALL for value in feeds.values()):
            return False
        results = ReferenceEvaluator(node).run(None, feeds)
        for name, result in zip(node.output, results, strict=False):
            array = np.asarray(result)
            self.add_type(name, self.onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            if array.size <= SMALL:
                self.values[name] = array
        return True

    def _shape_of(self, node: Any) -> bool:
        kind = self.types.get(node.input[0])
        if kind is None or not all(one.HasField("dim_value") for one in kind.tensor_type.shape.dim):
            return False
        limits = {attribute.name: attribute.i for attribute in node.attribute}
        sizes = np.array([one.dim_value for one in kind.tensor_type.shape.dim], np.int64)
        self.values[node.output[0]] = sizes[limits.get("start", 0) : limits.get("end", len(sizes))]
        self.add_type(node.output[0], self.onnx.TensorProto.INT64, self.values[node.output[0]].shape)
        return True


def _convolution(node: Any, inputs: list[Shape], output: Shape) -> float:
    """Every output value is a sum over the kernel and its group's channels; the weight is (out, in / groups, ...)."""
    return 2.0 * math.prod(output) * math.prod(inputs[1][1:])


def _transposed_convolution(node: Any, inputs: list[Shape], output: Shape) -> float:
    """Every input value goes into the kernel times the output channels of its group."""
    return 2.0 * math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _matrix_product(node: Any, inputs: list[Shape], output: Shape) -> float:
    return 2.0 * math.prod(output) * inputs[0][-1]


def _general_product(node: Any, inputs: list[Shape], output: Shape) -> float:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2.0 * math.prod(output) * inputs[0][0 if transposed else -1]


def _einsum(node: Any, inputs: list[Shape], output: Shape) -> float:
    """One multiply-add per combination of all the letters."""
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        sizes |= dict(zip(term, shape, strict=True))
    return 2.0 * math.prod(sizes.values())


def _attention(node: Any, inputs: list[Shape], output: Shape) -> float:
    """Scores and weighted values: query (B, H, L, E) with key (B, h, S, E) and value (B, h, S, Ev); Q, K, V in 4-D."""
    query, key = inputs[0], inputs[1]
    if len(query) != 4:
        heads = {attribute.name: attribute.i for attribute in node.attribute}.get("q_num_heads", 1)
        query = (query[0], heads, query[1], query[2] // heads)
    length = key[-2]
    return 2.0 * math.prod(query) * length + 2.0 * math.prod(output) * length


_COUNTERS = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matrix_product,
    "Gemm": _general_product,
    "Einsum": _einsum,
    "Attention": _attention,
}
