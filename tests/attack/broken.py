"""The demo model with a graph that was tampered with."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.bundle.manifest import file_record


def bundle_with(folder: Path, graph: str, output: str, factor: float) -> Path:
    """The demo model with an output multiplied by `factor`, hashes and all."""
    shutil.copytree(demo_folder(), folder)
    path = folder / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{name}_right" if name == output else name for name in names]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    model.graph.node.append(helper.make_node("Mul", [f"{output}_right", "factor"], [output]))
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_text())
    record = file_record(folder, path.name)
    manifest["graphs"][graph] |= {"bytes": record.bytes, "sha256": record.sha256}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
