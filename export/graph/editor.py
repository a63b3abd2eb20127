"""The editor of graphs (onnx_ir): questions about nodes and values, and the steps that rewrites are made of."""

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
    """The node that gives a value if it is of this type, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operation else None


def only_user(value: Any, operation: str) -> Any:
    """The only node that reads a value if it is of this type, else None."""
    users = list(value.uses())
    if len(users) != 1 or value.is_graph_output() or users[0].node.op_type != operation:
        return None
    return users[0].node


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """An attribute's value; lists are lists."""
    if name not in node.attributes:
        return default
    value = node.attributes[name].value
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def set_attribute(node: Any, name: str, value: Any) -> None:
    """Write an attribute: a number, a text, a list of numbers, or an array."""
    import onnx_ir

    given = onnx_ir.tensor(value) if isinstance(value, np.ndarray) else value
    node.attributes[name] = onnx_ir.convenience.convert_attribute(name, given)


def redirect(uses: Sequence[Any], new: Any) -> None:
    """Let the inputs `uses` (node, index) read another value."""
    for node, index in uses:
        node.replace_input_with(index, new)


class Editor:
    """Changes a graph; nodes, values and constants that are added get names that are free."""

    def __init__(self, model: Any):
        self.model = model
        self.graph = model.graph
        self._names = {value.name for value in (*self.graph.inputs, *self.graph.initializers.values())}
        self._names |= {value.name for node in self.graph for value in node.outputs}
        self._names |= {node.name for node in self.graph}

    def name(self, wish: str) -> str:
        """A free name, which is taken from now on."""
        while wish in self._names:
            wish += "_"
        self._names.add(wish)
        return wish

    def constant(self, content: np.ndarray, name: str, instead_of: Any = None) -> Any:
        """A new constant of the graph; with `instead_of` it replaces that one and takes its name."""
        import onnx_ir

        if instead_of is not None:
            del self.graph.initializers[instead_of.name]
            self._names.remove(instead_of.name)
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
        made = [
            onnx_ir.Value(name=self.name(f"{name}_{index}" if index else f"{name}_out")) for index in range(outputs)
        ]
        node = onnx_ir.node(operation, list(inputs), attributes or {}, domain=domain, outputs=made, name=name)
        self.graph.insert_before(place, node)
        return made

    def cast(self, value: Any, dtype: Any, name: str) -> Any:
        """The value in another type, by a cast right after the node that gives it: the nodes' order stays valid."""
        import onnx_ir

        made = onnx_ir.Value(name=self.name(name), shape=value.shape, type=onnx_ir.TensorType(dtype))
        node = onnx_ir.node("Cast", [value], {"to": int(dtype)}, outputs=[made], name=self.name(f"cast_{made.name}"))
        if value.producer() is not None:
            self.graph.insert_after(value.producer(), node)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], node)
        return made

    def replace(self, old: Any, new: Any) -> None:
        """Let everything that reads `old` read `new`; an output of the graph keeps its name."""
        redirect(list(old.uses()), new)
        if old.is_graph_output():
            self.give_out(old, new)
            new.type = old.type

    def give_out(self, old: Any, new: Any) -> None:
        """Make `new` the graph's output instead of `old`, with its name and shape."""
        index, name = list(self.graph.outputs).index(old), old.name
        if old.producer() is not None:
            old.name = self.name(f"{name}_inner")
        new.name, new.shape = name, old.shape
        self.graph.outputs[index] = new

    def sweep(self) -> None:
        """Remove nodes and constants that nothing reads any more."""
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        RemoveUnusedNodesPass()(self.model)

    def fix_reshapes(self) -> None:
        """Replace computed shapes of Reshape by constants: dynamic sizes are copied (0) or inferred (-1).

        Needs the shapes of all values. A reshape with two sizes that cannot be copied stays as it is.
        """
        for node in self.graph:
            if node.op_type != "Reshape" or constant(node.inputs[1]) is not None:
                continue
            given = dict(enumerate(node.inputs[0].shape))
            sizes = [
                size if isinstance(size, int) else 0 if size == given.get(axis) else -1
                for axis, size in enumerate(node.outputs[0].shape)
            ]
            if sizes.count(-1) < 2:
                node.replace_input_with(1, self.constant(np.array(sizes, np.int64), f"{node.name}_shape"))
                set_attribute(node, "allowzero", 0)
        self.sweep()

    def forget_types(self) -> None:
        """Drop inner types and shapes, which engines infer; graphs for other sizes then stay equal in bytes."""
        for node in self.graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = value.type = None
