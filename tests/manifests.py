"""A manifest with usual settings and no graphs, and the smallest bundle, for tests that run no model."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vocabseg.runtime.bundle.manifest import (
    FORMAT,
    GraphRecord,
    Manifest,
    Prompts,
    PromptSpec,
    TensorRecord,
    file_record,
    write_manifest,
)
from vocabseg.runtime.bundle.sections import EnsembleSection, InputSection, RegionSpec


def small_manifest(**changes: Any) -> Manifest:
    """The manifest with entries replaced by `changes`."""
    prompt = PromptSpec(graph="text_encoder", kind="single", templates=["a {}."])
    region = RegionSpec(
        mask_threshold=0.5,
        mask_fill="mean",
        expand_ratio=1,
        matting=False,
        crop_size=224,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    manifest = Manifest(
        format=FORMAT,
        name="test",
        graphs={},
        files={},
        input=InputSection(min_size=64, max_size=128, divisor=32, mean=(0, 0, 0), std=(1, 1, 1)),
        region=region,
        ensemble=EnsembleSection(enabled=True, weight=0.8, temperature=100),
        prompts=Prompts(query=prompt, region=prompt),
    )
    return msgspec.structs.replace(manifest, **changes)


# Inputs and outputs of the three graphs: name, type, shape.
TENSORS = {
    "proposal": (
        [("image", "float32", ["batch", 3, "height", "width"])],
        [
            ("mask_logits", "float32", ["batch", 5, "height/4", "width/4"]),
            ("query_embeddings", "float32", ["batch", 5, 4]),
        ],
    ),
    "image_encoder": (
        [("crops", "float32", ["batch", 3, 224, 224])],
        [("image_features", "float32", ["batch", 4])],
    ),
    "text_encoder": (
        [("token_ids", "int64", ["batch", 77]), ("eot_index", "int64", ["batch"])],
        [("text_features", "float32", ["batch", 4])],
    ),
}


def write_graph(folder: Path, graph: str, text: str = "", file: str = "", weights: str = "") -> GraphRecord:
    """Write a graph that computes nothing and has its weights in a file beside it; `text` makes it differ."""
    import onnx
    from onnx import helper

    file, (inputs, outputs) = file or f"{graph}.onnx", TENSORS[graph]
    weights = weights or f"{file}.data"
    (folder / weights).write_bytes(np.ones(8, np.float32).tobytes() + text.encode())
    tensor = onnx.TensorProto(name="weights", data_type=1, dims=[8], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=weights)
    tensors = [[TensorRecord(name=n, dtype=d, shape=s) for n, d, s in side] for side in (inputs, outputs)]
    ends = [[_described(one) for one in side] for side in tensors]
    model = helper.make_model(helper.make_graph([], graph, *ends, [tensor], doc_string=text))
    (folder / file).write_bytes(model.SerializeToString())
    record = file_record(folder, file)
    return GraphRecord(
        file=record.file,
        bytes=record.bytes,
        sha256=record.sha256,
        external=[file_record(folder, weights)],
        inputs=tensors[0],
        outputs=tensors[1],
        opset=21,
        provenance={"made_from": "0" * 64},
    )


def _described(tensor: TensorRecord) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(
        tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape
    )


def write_small_bundle(folder: Path) -> Path:
    """A bundle that opens, and holds everything but a model."""
    from safetensors.numpy import save_file

    folder.mkdir()
    save_file({"query.non_object_embedding": np.ones((1, 4), np.float32)}, folder / "tensors.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    graphs = {name: write_graph(folder, name) for name in TENSORS}
    files = {name: file_record(folder, name) for name in ("tokenizer.json", "tensors.safetensors")}
    write_manifest(small_manifest(graphs=graphs, files=files), folder)
    return folder
