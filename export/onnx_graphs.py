"""PyTorch modules -> ONNX graphs with dynamic shapes, the same bytes every time, checked on the installed engines."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vocabseg.export.attention import use_fused_attention
from vocabseg.runtime.bundle import GraphRecord, TensorRecord, file_record
from vocabseg.runtime.errors import VocabsegError

OPSET = 21  # the first with GroupNormalization as one operation that TensorRT parses
FUSED_OPSET = 23  # the first with Attention
STRIDE = 32  # height and width of the proposal network's input are multiples of it
INLINE_LIMIT = 1_000_000  # weights of at most this many bytes stay inside the .onnx file

# The FP32 column of the parity contract asks for this cosine of region embeddings; every output is held to it. Maps,
# whose single values decide about pixels, are also held to an error relative to their largest value.
COSINE_LIMIT = 0.99999
RELATIVE_LIMIT = 1e-3

Dimensions = Sequence[int | str]


class ExportError(VocabsegError):
    """A graph that cannot be written, or that does not compute what its module computes."""


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
    Exporting the same module twice gives the same bytes. Raises ExportError where the graph is not valid.
    """
    import onnx_ir

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
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    data = f"{path.name}.data" if size > INLINE_LIMIT else None
    onnx_ir.save(model, path, external_data=data, size_threshold_bytes=1024)
    _validate(path, model)
    return _record(path, data, model, opset)


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
    from vocabseg.runtime.engines import CPU_ENGINES, installed, open_engine

    path = Path(path)
    names = [name for name in CPU_ENGINES if installed(name)]
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


def _validate(path: Path, model: Any) -> None:
    import onnx

    try:
        # By path: the checker then reads external weights, and graphs over protobuf's 2 GB.
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is no valid graph: {str(error).splitlines()[0]}") from error
    names = [value.name for value in (*model.graph.inputs, *model.graph.initializers.values())]
    for node in model.graph:
        names += [value.name for value in node.outputs]
        if node.domain or (node.overload or None):
            raise ExportError(f"{path.name} uses {node.domain}.{node.op_type}, which is no standard operation")
        if node.op_type == "Resize" and "antialias" in node.attributes and node.attributes["antialias"].as_int():
            raise ExportError(f"{path.name} resizes with antialiasing, which TensorRT cannot parse")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ExportError(f"{path.name} defines {', '.join(map(repr, twice[:3]))} more than once")


def _record(path: Path, data: str | None, model: Any, opset: int) -> GraphRecord:
    own = file_record(path.parent, path.name)

    def tensors(values: Sequence[Any]) -> list[TensorRecord]:
        return [
            TensorRecord(
                name=value.name,
                dtype=value.dtype.numpy().name,
                shape=[size if isinstance(size, int) else str(size.value) for size in value.shape],
            )
            for value in values
        ]

    return GraphRecord(
        file=own.file,
        bytes=own.bytes,
        sha256=own.sha256,
        external=[file_record(path.parent, data)] if data else [],
        inputs=tensors(model.graph.inputs),
        outputs=tensors(model.graph.outputs),
        opset=opset,
    )


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
