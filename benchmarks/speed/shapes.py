"""Shapes of every value of an ONNX graph for inputs of given shapes.

onnx's own inference stops where a size is computed by the graph (Shape, Div, Concat, Reshape). Here the nodes are
walked in order, and what is small and known is computed for good, so that the next node's shape follows from it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.errors import BundleError

Shape = tuple[int, ...]
# Values of at most so many elements are computed: sizes and positions, no weights.
SMALL = 65_536
# Defined by ONNX as functions of other nodes, for which its inference of one node says nothing: output as first input.
LIKE_FIRST_INPUT = ("GroupNormalization", "LayerNormalization", "RMSNormalization", "Gelu", "Mish", "Swish")


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
    """What is known so far: types (with shapes) and, of small integers and the like, values."""

    def __init__(self, model: Any):
        import onnx

        self.onnx = onnx
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.imports = list(model.opset_import)
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
