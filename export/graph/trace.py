"""PyTorch modules -> ONNX graphs with dynamic shapes, the same bytes every time."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vocabseg.export.graph.editor import Editor
from vocabseg.export.graph.onnx_file import ExportError, save_graph
from vocabseg.export.model.attention import use_fused_attention
from vocabseg.export.tensorrt.operators import check_operators
from vocabseg.runtime.bundle.manifest import GraphRecord

OPSET = 21  # the first with GroupNormalization as one operation that TensorRT parses
FUSED_OPSET = 23  # the first with Attention
OPSETS = range(18, 25)  # torch writes none below, and TensorRT parses none above
STRIDE = 32  # height and width of the proposal network's input are multiples of it

Dimensions = Sequence[int | str]


def export_graph(
    module: nn.Module,
    sample: Mapping[str, Tensor],
    dimensions: Mapping[str, Dimensions],
    path: str | Path,
    opset: int = OPSET,
    fused_attention: bool = False,
) -> GraphRecord:
    """Write `module` as an ONNX graph at `path`; weights over 1 MB go to `<path>.data`.

    `sample` holds an input per argument, by name and in order, with a batch of at least two. `dimensions` names the
    sizes of every input and output in order: a number is fixed, a word is dynamic; "height" and "width" are multiples
    of 32. `fused_attention` writes one Attention operation per layer and raises the opset to 23.
    Exporting the same module twice gives the same bytes. Raises ExportError if torch cannot write the opset, or the
    graph is not valid or contains something that TensorRT's parser does not take.
    """
    path = Path(path)
    check_opset(opset)
    opset = max(opset, FUSED_OPSET) if fused_attention else opset
    use_fused_attention(module, fused_attention)
    outputs = [name for name in dimensions if name not in sample]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about renamed axes and about the exporter's own dependencies
        program = torch.onnx.export(
            module.eval(),
            tuple(sample.values()),
            dynamo=True,
            verbose=False,
            input_names=list(sample),
            output_names=outputs,
            dynamic_shapes=_dynamic_shapes([dimensions[name] for name in sample]),
            opset_version=opset,
        )
    if program is None:
        raise ExportError(f"the exporter gave no graph for {path.name}: try another version of torch")
    model = program.model
    _tidy(model, dimensions)
    record = save_graph(model, path)
    if record.opset != opset:
        raise ExportError(
            f"the exporter gave opset {record.opset} for {path.name}, not {opset}: ask for another --opset"
        )
    problems = check_operators(path)
    if problems:
        raise ExportError(f"TensorRT cannot parse {problems[0]}: change the module, or export without this operation")
    return record


def check_opset(opset: int) -> None:
    """Raise ExportError for an opset that no graph can be written in."""
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} cannot be written: use one of {OPSETS[0]} to {OPSETS[-1]}")


def _dynamic_shapes(inputs: Sequence[Dimensions]) -> tuple[dict[int, Any], ...]:
    known: dict[str, Any] = {}

    def dimension(name: str) -> Any:
        if name not in known:
            tiled = name in ("height", "width")
            known[name] = STRIDE * torch.export.Dim(f"{name}_tiles") if tiled else torch.export.Dim(name)
        return known[name]

    return tuple({axis: dimension(n) for axis, n in enumerate(names) if isinstance(n, str)} for names in inputs)


def _tidy(model: Any, dimensions: Mapping[str, Dimensions]) -> None:
    """Name the sizes of inputs and outputs; drop what is no part of the graph: paths, stack traces, inner shapes."""
    import onnx_ir

    editor = Editor(model)
    editor.fix_reshapes()
    graph = model.graph
    inner = [value for node in graph for value in node.outputs if not value.is_graph_output()]
    for value in inner:
        if value.name in dimensions:  # the exporter may use a name twice
            value.name = editor.name(f"{value.name}_inner")
    for value in (*graph.inputs, *graph.outputs):
        value.shape = onnx_ir.Shape(list(dimensions[value.name]))
    editor.forget_types()
    outputs = [value for node in graph for value in node.outputs]
    for holder in (model, graph, *graph, *graph.inputs, *graph.initializers.values(), *outputs):
        holder.metadata_props.clear()
        holder.doc_string = None
