"""Bundles that were tampered with."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.manifest import file_record
from vocabseg.runtime.errors import BundleError


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


def edit(folder: Path, place: str, value: Any) -> None:
    """Set an entry of the manifest: "input.std", "graphs.proposal.inputs.0.name"; a key that is a tuple is renamed."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    *parents, last = place.split(".")
    entry = manifest
    for key in parents:
        entry = entry[int(key) if isinstance(entry, list) else key]
    if isinstance(value, tuple):
        entry[value[0]] = entry.pop(last)
    else:
        entry[int(last) if isinstance(entry, list) else last] = value
    path.write_text(json.dumps(manifest))


def record_again(folder: Path, graph: str) -> None:
    """Make the manifest's hashes those of a graph that was changed: an attacker would."""
    record = file_record(folder, f"{graph}.onnx")
    edit(folder, f"graphs.{graph}.bytes", record.bytes)
    edit(folder, f"graphs.{graph}.sha256", record.sha256)


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert len(message) < 1000
    return message
