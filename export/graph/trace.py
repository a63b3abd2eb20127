"""PyTorch modules -> ONNX graphs with dynamic shapes, the same bytes every time, checked on the installed engines."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vocabseg.export.graph.files import ExportError, save_graph
from vocabseg.export.model.attention import use_fused_attention
from vocabseg.export.tensorrt.operators import check_operators
from vocabseg.runtime.bundle.manifest import GraphRecord

OPSET = 21  # the first with GroupNormalization as one operation that TensorRT parses
FUSED_OPSET = 23  # the first with Attention
STRIDE = 32  # height and width of the proposal network's input are multiples of it

# The FP32 column of the parity contract asks for this cosine of region embeddings; every output is held to it. Maps,
# whose single values decide about pixels, are also held to an error relative to their largest value.
COSINE_LIMIT = 0.99999
RELATIVE_LIMIT = 1e-3

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
    Exporting the same module twice gives the same bytes. Raises ExportError where the graph is not valid, or has
    something that TensorRT's parser does not take.
    """
    path = Path(path)
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
    record = save_graph(model, path, opset)
    problems = check_operators(path)
    if problems:
        raise ExportError(f"TensorRT cannot parse {problems[0]}: change the module, or export without this operation")
    return record


def operators(path: str | Path) -> Counter[str]:
    """How often a graph uses each operation."""
    import onnx

    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def check_graph(
    path: str | Path, module: nn.Module, inputs: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Run a graph on every installed engine and compare with its module in float32: engine -> output -> figures.

    Figures are the largest absolute error, that error over the largest value, and the worst cosine of an output vector
    (of a map, for mask logits). Raises ExportError beyond the limits above, and where no engine is installed.
    """
    from vocabseg.runtime.engines.choose import ON_CPU, installed
    from vocabseg.runtime.engines.host import open_engine

    path = Path(path)
    names = [offer.name for offer in ON_CPU if installed(offer.name)]
    if not names:
        raise ExportError("no engine is installed to check the exported graphs with: pip install 'vocabseg[cpu]'")
    expected = [_run_module(module, arrays) for arrays in inputs]
    report: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        engine = open_engine(path, engine=name, device="cpu", precision="float32")
        figures: dict[str, dict[str, float]] = {}
        for arrays, wanted in zip(inputs, expected, strict=True):
            found = engine.run(arrays)
            for (output, array), reference in zip(found.items(), wanted, strict=True):
                values = _compare(array, reference)
                _enforce(f"{path.name} on {name}: output {output}", values, reference.ndim == 4)
                _merge(figures.setdefault(output, {}), values)
        engine.close()
        report[engine.key] = figures
    return report


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

    graph = model.graph
    for holder in (model, graph):
        holder.metadata_props.clear()
        holder.doc_string = None
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            if not value.is_graph_output():
                value.shape = value.type = None
                if value.name in dimensions:  # the exporter does not see to it that names differ
                    value.name = f"{value.name}_inner"
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for value in (*graph.inputs, *graph.outputs):
        value.shape = onnx_ir.Shape(list(dimensions[value.name]))


def _run_module(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        results = module(*(torch.from_numpy(array) for array in arrays.values()))
    return [result.numpy() for result in (results if isinstance(results, tuple) else (results,))]


def _compare(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    if found.shape != reference.shape or not np.isfinite(found).all():
        return {"max_abs": float("inf"), "relative": float("inf"), "cosine": -1.0}
    error = float(np.abs(found - reference).max(initial=0.0))
    largest = float(np.abs(reference).max(initial=0.0))
    axes = (-2, -1) if reference.ndim == 4 else (-1,)
    a, b = found.astype(np.float64), reference.astype(np.float64)
    lengths = np.sqrt((a * a).sum(axes) * (b * b).sum(axes))
    cosine = np.divide((a * b).sum(axes), lengths, out=np.ones_like(lengths), where=lengths > 0)
    return {
        "max_abs": error,
        "relative": error / largest if largest else error,
        "cosine": float(cosine.min(initial=1.0)),
    }


def _merge(total: dict[str, float], values: Mapping[str, float]) -> None:
    for key, value in values.items():
        worst = min if key == "cosine" else max
        total[key] = worst(total.get(key, value), value)


def _enforce(what: str, values: Mapping[str, float], maps: bool) -> None:
    if values["cosine"] < COSINE_LIMIT or (maps and values["relative"] > RELATIVE_LIMIT):
        raise ExportError(
            f"{what} differs from PyTorch: cosine {values['cosine']:.7f} (at least {COSINE_LIMIT}), relative error "
            f"{values['relative']:.1e}{f' (at most {RELATIVE_LIMIT:.0e})' if maps else ''}; "
            "try another version of torch or of the engine"
        )
