"""An FP16 graph -> a float32 graph that rounds every result to FP16: what the FP16 graph gives, on a CPU.

ONNX Runtime has no FP16 arithmetic on x86. It runs an FP16 graph in float32 and leaves out the rounding between nodes
(it takes back its own casts: a product of 240,000 divided by four is 60,000 there, and infinite on a GPU), so that it
shows neither overflow nor the noise of FP16. Casts that stand in the graph are not taken back. As on a GPU, sums inside
one operation, and a normalisation's statistics, are in float32.
"""

from pathlib import Path
from typing import Any

from vocabseg.export.graph.files import ExportError, check_graph_file, graph_record
from vocabseg.export.half.convert import forget_types, load_typed
from vocabseg.runtime.bundle.manifest import GraphRecord

# Give back numbers they were given, or 0: nothing to round.
EXACT = (
    "Reshape", "Transpose", "Concat", "Slice", "Split", "Gather", "Expand", "Squeeze", "Unsqueeze", "Identity", "Pad",
    "Flatten", "MaxPool", "Relu", "Neg", "Abs", "Max", "Min", "Where", "Tile", "GatherElements", "GatherND",
)  # fmt: skip


def write_rounded(source: str | Path, target: str | Path) -> GraphRecord:
    """Write the rounding form of the FP16 graph at `source` at `target`, in the same folder: they share their weights.

    Inputs and outputs have the types of the FP16 graph. Raises ExportError where that is not possible.
    """
    import onnx_ir

    source, target = Path(source), Path(target)
    if source.parent.resolve() != target.parent.resolve():
        raise ExportError(f"{target} must stand beside {source.name}: they share their weights")
    model, digest = load_typed(source, map_weights=False)
    graph = model.graph
    half, full = onnx_ir.DataType.FLOAT16, onnx_ir.DataType.FLOAT
    names = {value.name for node in graph for value in node.outputs}
    names |= {value.name for value in (*graph.inputs, *graph.initializers.values())}

    def cast(value: Any, dtype: Any, name: str) -> Any:
        while name in names:
            name += "_"
        names.add(name)
        made = onnx_ir.Value(name=name, shape=value.shape, type=onnx_ir.TensorType(dtype))
        to = onnx_ir.AttrInt64("to", int(dtype))
        return onnx_ir.Node("", "Cast", [value], [to], outputs=[made], name=f"cast_{name}")

    first = graph[0]
    for value in (*graph.inputs, *graph.initializers.values()):
        users = list(value.uses())
        if value.dtype == half and users:
            node = cast(value, full, f"{value.name}_float32")
            graph.insert_before(first, node)
            for user, index in users:
                user.replace_input_with(index, node.outputs[0])
    for node in list(graph):
        rounded = [value for value in node.outputs if value.dtype == half]
        if not rounded:
            continue
        if node.op_type == "Cast":
            node.attributes["to"] = onnx_ir.AttrInt64("to", int(full))
        elif node.op_type == "ConstantOfShape" and "value" in node.attributes:
            content = node.attributes["value"].as_tensor().numpy().astype("float32")
            node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.tensor(content))
        for value in rounded:
            users, output = list(value.uses()), value.is_graph_output()
            value.dtype = full
            if node.op_type in EXACT and not output:
                continue
            down = cast(value, half, f"{value.name}_float16")
            up = cast(down.outputs[0], full, f"{value.name}_rounded")
            graph.insert_after(node, [down, up])
            for user, index in users:
                user.replace_input_with(index, up.outputs[0])
            if output:
                _take_over(graph, value, down.outputs[0])
            if not up.outputs[0].uses():
                graph.remove(up)
    forget_types(model)
    onnx_ir.save(model, target)
    check_graph_file(target, model)
    data = source.with_name(f"{source.name}.data")
    provenance = {"made_from": digest, "rounded": True}
    return graph_record(
        target, data.name if data.is_file() else None, model, graph.opset_imports[""],
        dtype="float16", provenance=provenance,
    )  # fmt: skip


def _take_over(graph: Any, value: Any, other: Any) -> None:
    """Make `other` the output that `value` is, under its name."""
    name, index = value.name, list(graph.outputs).index(value)
    value.name, other.name = f"{name}_unrounded", name
    other.shape = value.shape
    graph.outputs[index] = other
