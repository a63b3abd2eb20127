"""Small steps that rewrites of a graph are made of (onnx_ir)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MICROSOFT = "com.microsoft"


def constant(value: Any) -> np.ndarray | None:
    """The content of a value that is a weight or constant of the graph, else None."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    return value.const_value.numpy()


def made_by(value: Any, operation: str) -> Any:
    """The node that gives a value where it is of this type, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operation else None


def only_user(value: Any, operation: str) -> Any:
    """The node that alone reads a value where it is of this type, else None."""
    users = list(value.uses())
    if len(users) != 1 or value.is_graph_output() or users[0].node.op_type != operation:
        return None
    return users[0].node


def integers(node: Any, name: str) -> list[int] | None:
    """An attribute that is a list of integers, or None where it is not written."""
    return list(node.attributes[name].as_ints()) if name in node.attributes else None


def number(node: Any, name: str, default: float) -> float:
    """An attribute that is a number."""
    return node.attributes[name].value if name in node.attributes else default


def _attribute(name: str, value: Any) -> Any:
    import onnx_ir

    if isinstance(value, list):
        return onnx_ir.AttrInt64s(name, value)
    if isinstance(value, str):
        return onnx_ir.AttrString(name, value)
    return onnx_ir.AttrInt64(name, value) if isinstance(value, int) else onnx_ir.AttrFloat32(name, value)


class Editor:
    """Adds nodes and constants to a graph under names that are free."""

    def __init__(self, model: Any):
        self.model = model
        self.graph = model.graph
        self._names = {value.name for value in (*self.graph.inputs, *self.graph.initializers.values())}
        self._names |= {value.name for node in self.graph for value in node.outputs}
        self._names |= {node.name for node in self.graph}

    def name(self, wish: str) -> str:
        while wish in self._names:
            wish += "_"
        self._names.add(wish)
        return wish

    def constant(self, content: np.ndarray, name: str) -> Any:
        """A new constant of the graph."""
        import onnx_ir

        # Not ascontiguousarray, which makes a list of one number out of a number.
        tensor = onnx_ir.tensor(np.array(content, order="C"), name=self.name(name))
        kind, shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(content.shape)
        value = onnx_ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def before(
        self,
        place: Any,
        operation: str,
        inputs: Sequence[Any],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        outputs: int = 1,
        name: str | None = None,
    ) -> list[Any]:
        """A new node before the node `place`; returns its outputs."""
        import onnx_ir

        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        name = self.name(name or f"{place.name}_{operation}")
        names = [self.name(f"{name}_{index}" if index else f"{name}_out") for index in range(outputs)]
        made = [onnx_ir.Value(name=one) for one in names]
        written = [_attribute(key, value) for key, value in (attributes or {}).items()]
        node = onnx_ir.Node(domain, operation, list(inputs), written, outputs=made, name=name)
        self.graph.insert_before(place, node)
        return made

    def replace(self, old: Any, new: Any) -> None:
        """Let everything that reads `old` read `new`; an output of the graph keeps its name."""
        for user, index in list(old.uses()):
            user.replace_input_with(index, new)
        if old.is_graph_output():
            index = list(self.graph.outputs).index(old)
            new.shape, new.type = old.shape, old.type
            name = old.name
            old.name = self.name(f"{name}_unused")
            new.name = name
            self.graph.outputs[index] = new

    def sweep(self) -> None:
        """Remove what nothing reads any more."""
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        RemoveUnusedNodesPass()(self.model)
        for value in list(self.graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[value.name]
