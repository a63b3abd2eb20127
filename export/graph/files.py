"""ONNX graphs as files: the same bytes for the same graph, checked when written, and their records. Needs no torch."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vocabseg.runtime.bundle.manifest import GraphRecord, TensorRecord, file_record
from vocabseg.runtime.errors import VocabsegError

INLINE_LIMIT = 1_000_000  # weights of at most this many bytes stay inside the .onnx file


class ExportError(VocabsegError):
    """A graph that cannot be written, or that does not compute what its module computes."""


def save_graph(model: Any, path: Path, opset: int, domains: Sequence[str] = (), **fields: Any) -> GraphRecord:
    """Write an onnx_ir model; weights over 1 MB go to `<path>.data`. `fields` are further ones of the record.

    Raises ExportError where the graph is not valid.
    """
    import onnx_ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    data = f"{path.name}.data" if size > INLINE_LIMIT else None
    onnx_ir.save(model, path, external_data=data, size_threshold_bytes=1024)
    check_graph_file(path, model, domains)
    return graph_record(path, data, model, opset, **fields)


def check_graph_file(path: Path, model: Any, domains: Sequence[str] = ()) -> None:
    """Raise ExportError where the graph at `path`, which is `model`, is not valid or cannot be parsed by TensorRT.

    `domains` are those, beside the standard one, whose operations may be used.
    """
    import onnx

    try:
        # By path: the checker then reads external weights, and graphs over protobuf's 2 GB.
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is no valid graph: {str(error).splitlines()[0]}") from error
    names = [value.name for value in (*model.graph.inputs, *model.graph.initializers.values())]
    for node in model.graph:
        names += [value.name for value in node.outputs if value.name]  # those left out have none
        if (node.domain and node.domain not in domains) or node.overload:
            raise ExportError(f"{path.name} uses {node.domain}.{node.op_type}, which is no standard operation")
        if node.op_type == "Resize" and "antialias" in node.attributes and node.attributes["antialias"].as_int():
            raise ExportError(f"{path.name} resizes with antialiasing, which TensorRT cannot parse")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ExportError(f"{path.name} defines {', '.join(map(repr, twice[:3]))} more than once")


def graph_record(path: Path, data: str | None, model: Any, opset: int, **fields: Any) -> GraphRecord:
    """The record of the graph at `path`, which is `model`, with its weights in the file `data` beside it."""
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
        **fields,
    )
