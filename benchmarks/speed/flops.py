"""Floating-point operations and weight bytes of an ONNX graph, counted from the graph itself for one input size.

Counted are the matrix products in their many guises (Conv, ConvTranspose, Gemm, MatMul, Einsum, Attention), two
operations per multiply-add, as published FLOP tables count; element-wise work is left out.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vocabseg.benchmarks.speed.shapes import Shape, infer_shapes, load_graph
from vocabseg.runtime.errors import BundleError

# Bytes of an element by ONNX's number of its type.
_ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}


class GraphWork(msgspec.Struct, frozen=True):
    """What one run of a graph computes and reads: operations, by kind of node too, and the bytes of its weights."""

    operations: float
    weight_bytes: int
    by_kind: dict[str, float]


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
    kinds: dict[str, float] = {}
    for node in graph.node:
        count = _COUNTERS.get(node.op_type)
        if count is None:
            continue
        known = [shapes.get(name) for name in (*node.input, *node.output) if name]
        if any(shape is None for shape in known):
            raise BundleError(f"{path}: the size of {node.op_type} {node.name} does not follow from the inputs' sizes")
        operations = count(node, [shapes[name] for name in node.input if name], shapes[node.output[0]])
        kinds[node.op_type] = kinds.get(node.op_type, 0.0) + operations
    weights = sum(math.prod(tensor.dims) * _ELEMENT_BYTES.get(tensor.data_type, 4) for tensor in graph.initializer)
    return GraphWork(sum(kinds.values()), weights, kinds)


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
        query, output = (query[0], heads, query[1], query[2] // heads), (*output[:-1], output[-1])
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
