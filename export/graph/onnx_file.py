"""ONNX graphs as files: read with their weights mapped, written and checked, and their records. Needs no torch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.bundle.manifest import GraphRecord, TensorRecord, file_record, sha256_file
from vocabseg.runtime.errors import VocabsegError

INLINE_LIMIT = 1_000_000  # weights of at most this many bytes stay inside the .onnx file


class ExportError(VocabsegError):
    """A graph that cannot be written, or that does not compute what its module computes."""


def load_graph(path: Path, map_weights: bool = True) -> Any:
    """The onnx_ir model in a file; constants become initializers.

    Weights in a separate file are mapped; without `map_weights` they stay references, and are saved as such.
    Raises ExportError for a file that is no graph, and for weights that are missing or outside its folder.
    """
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    try:
        model = onnx_ir.from_proto(onnx.load(path, load_external_data=False))
    except Exception as error:  # protobuf's and onnx_ir's have no base in common
        raise ExportError(f"{path} is no ONNX graph: {(str(error).splitlines() or ['unreadable'])[0]}") from error
    onnx_ir.external_data.set_base_dir(model.graph, path.parent)
    model = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model).model
    for value in model.graph.initializers.values():
        if map_weights and isinstance(value.const_value, onnx_ir.ExternalTensor):
            value.const_value = mapped_weight(path, value.const_value)
    return model


def mapped_weight(path: Path, tensor: Any) -> Any:
    """Weights from a graph's separate file, mapped. onnx_ir would refuse files that bundles share by hard links."""
    import onnx_ir

    file = path.parent / tensor.location
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ExportError(f"{path} names weights outside its folder ({tensor.location}): do not use this graph")
    shape = tuple(int(size) for size in tensor.shape)
    try:
        content = np.memmap(file, tensor.dtype.numpy(), "r", tensor.offset or 0, shape)
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read the weights of {path}: {str(error).splitlines()[0]}") from error
    return onnx_ir.tensor(content, name=tensor.name)


def weights_file(path: Path) -> Path:
    """Where the weights of the graph at `path` are, if they are large."""
    return path.with_name(f"{path.name}.data")


def graph_digest(path: Path) -> str:
    """What GraphRecord.digest gives for the graph at `path`."""
    hashes = [sha256_file(file) for file in (path, weights_file(path)) if file.is_file()]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def save_graph(model: Any, path: Path, domains: Sequence[str] = (), **fields: Any) -> GraphRecord:
    """Write an onnx_ir model; weights over 1 MB go to `<path>.data`. `fields` are further ones of the record.

    Its IR version is the lowest that has its opset, since an older engine refuses a file for a newer one alone.

    Raises ExportError if the graph is not valid.
    """
    import onnx
    import onnx_ir

    opset = onnx.helper.make_opsetid("", model.graph.opset_imports[""])
    model.ir_version = min(model.ir_version, onnx.helper.find_min_ir_version_for([opset]))
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    data = weights_file(path).name if size > INLINE_LIMIT else None
    onnx_ir.save(model, path, external_data=data, size_threshold_bytes=1024)
    check_graph_file(path, model, domains)
    return graph_record(path, data, model, **fields)


def check_graph_file(path: Path, model: Any, domains: Sequence[str] = ()) -> None:
    """Raise ExportError if the graph at `path`, which is `model`, is not valid.

    Operations may be of the standard domain and of `domains`.
    """
    import onnx

    try:
        # By path: the checker then reads external weights, and graphs over protobuf's 2 GB.
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is no valid graph: {str(error).splitlines()[0]}") from error
    for node in model.graph:
        if node.domain not in ("", *domains) or node.overload:
            raise ExportError(f"{path.name} uses {node.domain}.{node.op_type}, which is no standard operation")


def graph_record(path: Path, data: str | None, model: Any, **fields: Any) -> GraphRecord:
    """The record of the graph at `path`, which is `model`, with its weights in the file `data` of its folder."""
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
        opset=model.graph.opset_imports[""],
        **fields,
    )
