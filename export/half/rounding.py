"""An FP16 graph -> a float32 graph that rounds every result to FP16: what the FP16 graph gives, on a CPU. bfloat16 too.

ONNX Runtime has no FP16 arithmetic on x86. It runs an FP16 graph in float32 and leaves out the rounding between nodes
(it removes the casts that it added itself: a product of 240,000 divided by four is 60,000 there, and infinite on a
GPU), so that neither overflow nor the noise of FP16 shows. Casts that the graph itself contains are kept. As on a GPU,
sums inside one operation, and a normalisation's statistics, are in float32.
"""

from pathlib import Path

from vocabseg.export.graph.editor import Editor, redirect
from vocabseg.export.graph.onnx_file import (
    ExportError,
    check_graph_file,
    graph_digest,
    graph_record,
    load_graph,
    weights_file,
)
from vocabseg.export.graph.values import infer_types, set_output_type
from vocabseg.runtime.bundle.manifest import GraphRecord

# Nothing to round: their outputs are numbers of their inputs, or 0.
EXACT = (
    "Reshape", "Transpose", "Concat", "Slice", "Split", "Gather", "Expand", "Squeeze", "Unsqueeze", "Identity", "Pad",
    "Flatten", "MaxPool", "Relu", "Neg", "Abs", "Max", "Min", "Where", "Tile", "GatherElements", "GatherND",
)  # fmt: skip


def write_rounded(source: str | Path, target: str | Path, digest: str | None = None) -> GraphRecord:
    """Write the rounding form of the 16-bit graph at `source` to `target`, in the same folder: they share weights.

    Inputs and outputs have the types of that graph. `digest` is the source's, if it is known. Raises ExportError if
    that is not possible.
    """
    import onnx_ir

    source, target = Path(source), Path(target)
    if source.parent.resolve() != target.parent.resolve():
        raise ExportError(f"{target} must be in the folder of {source.name}: they share their weights")
    model = load_graph(source, map_weights=False)
    infer_types(model)
    editor, graph = Editor(model), model.graph
    full = onnx_ir.DataType.FLOAT
    types = {value.dtype for node in graph for value in node.outputs}
    half = onnx_ir.DataType.BFLOAT16 if onnx_ir.DataType.BFLOAT16 in types else onnx_ir.DataType.FLOAT16
    precision = half.name.lower()
    nodes = list(graph)
    for value in (*graph.inputs, *graph.initializers.values()):
        uses = list(value.uses())
        if value.dtype == half and uses:
            redirect(uses, editor.cast(value, full, f"{value.name}_float32"))
    for node in nodes:
        for value in [value for value in node.outputs if value.dtype == half]:
            set_output_type(node, full)
            value.dtype = full
            uses, name, is_output = list(value.uses()), value.name, value.is_graph_output()
            if node.op_type in EXACT and not is_output:
                continue
            rounded = editor.cast(value, half, f"{name}_{precision}")
            if is_output:
                editor.give_out(value, rounded)
            if uses:
                redirect(uses, editor.cast(rounded, full, f"{name}_rounded"))
    editor.forget_types()
    onnx_ir.save(model, target)
    check_graph_file(target, model)
    data = weights_file(source)
    return graph_record(
        target,
        data.name if data.is_file() else None,
        model,
        dtype=precision,
        provenance={"made_from": digest or graph_digest(source), "rounded": True},
    )
