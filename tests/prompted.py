"""The demo model with an image encoder that takes patch masks, for tests of everything around that input."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.bundle.manifest import MANIFEST, file_record

GRAPH = "image_encoder"


def prompted_bundle(folder: Path, grid: int = 4) -> Path:
    """The demo model, whose image features are moved by a vector for each of grid x grid patches that is set."""
    shutil.copytree(demo_folder(), folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    record = manifest["graphs"][GRAPH]
    width, shape = record["outputs"][0]["shape"][1], ["batch", grid, grid]
    path = folder / record["file"]
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for node in graph.node:
        node.output[:] = [f"{name}_of_crops" if name == "image_features" else name for name in node.output]
    graph.input.append(helper.make_tensor_value_info("patch_mask", TensorProto.FLOAT, shape))
    vectors = np.random.default_rng(16).normal(0, 10 / grid, (grid * grid, width)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(vectors, "patch_vectors"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1, grid * grid]), "patch_rows"))
    graph.node.append(helper.make_node("Reshape", ["patch_mask", "patch_rows"], ["patches"], "flatten_patches"))
    graph.node.append(helper.make_node("MatMul", ["patches", "patch_vectors"], ["shift"], "weigh_patches"))
    graph.node.append(
        helper.make_node("Add", ["image_features_of_crops", "shift"], ["image_features"], "shift_features")
    )
    path.write_bytes(model.SerializeToString())
    fresh = file_record(folder, path.name)
    record |= {"bytes": fresh.bytes, "sha256": fresh.sha256}
    record["inputs"].append({"name": "patch_mask", "dtype": "float32", "shape": shape})
    manifest["region"]["patch_grid"] = grid
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
