"""The bundle's contract: what is accepted, and the one line that says why not."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.manifests import small_manifest
from vocabseg.runtime.bundle import FORMAT, GraphRecord, file_record, open_bundle, write_manifest
from vocabseg.runtime.errors import BundleError


@pytest.fixture
def folder(tmp_path):
    """A bundle whose graphs are no graphs: enough for everything that is checked before an engine opens them."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    save_file({"query.non_object_embedding": np.ones((1, 4), np.float32)}, folder / "tensors.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    graphs = {}
    for name in ("proposal", "image_encoder", "text_encoder"):
        (folder / f"{name}.onnx").write_bytes(name.encode() * 10)
        (folder / f"{name}.onnx.data").write_bytes(b"weights" * 10)
        record = file_record(folder, f"{name}.onnx")
        graphs[name] = GraphRecord(
            file=record.file,
            bytes=record.bytes,
            sha256=record.sha256,
            external=[file_record(folder, f"{name}.onnx.data")],
            inputs=[],
            outputs=[],
            opset=21,
        )
    files = {name: file_record(folder, name) for name in ("tokenizer.json", "tensors.safetensors")}
    write_manifest(small_manifest(graphs=graphs, files=files), folder)
    return folder


def edit(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refused(folder, *words):
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_an_intact_bundle_opens(folder):
    bundle = open_bundle(folder)
    assert bundle.manifest.graphs.keys() == {"proposal", "image_encoder", "text_encoder"}
    assert bundle.graph_path("proposal") == folder / "proposal.onnx"
    np.testing.assert_array_equal(bundle.tensors["query.non_object_embedding"], np.ones((1, 4), np.float32))


def test_a_digest_follows_the_weights(folder):
    graph = open_bundle(folder).graph("proposal")
    edit(folder, lambda m: m["graphs"]["proposal"]["external"][0].update(sha256="0" * 64))
    assert open_bundle(folder, verify=False).graph("proposal").digest() != graph.digest()


@pytest.mark.parametrize("name", ["proposal.onnx", "text_encoder.onnx.data", "tokenizer.json", "tensors.safetensors"])
def test_a_changed_byte_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, name, "SHA-256")


def test_a_file_of_another_size_is_found(folder):
    (folder / "proposal.onnx.data").write_bytes(b"short")
    refused(folder, "proposal.onnx.data", "5 bytes")


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/hostname", "sub/../../outside.onnx", "..\\outside.onnx"])
def test_a_path_that_leaves_the_folder_is_refused(folder, path):
    (folder.parent / "outside.onnx").write_bytes(b"x")
    edit(folder, lambda m: m["graphs"]["proposal"].update(file=path))
    refused(folder, "outside")


def test_a_link_that_leaves_the_folder_is_refused(folder):
    (folder.parent / "outside.onnx").write_bytes((folder / "proposal.onnx").read_bytes())
    (folder / "proposal.onnx").unlink()
    (folder / "proposal.onnx").symlink_to(folder.parent / "outside.onnx")
    refused(folder, "outside")


def test_a_newer_format_asks_for_an_upgrade(folder):
    edit(folder, lambda m: m.update(format=FORMAT + 1, something_new=[1]))
    refused(folder, f"format {FORMAT + 1}", "upgrade")


@pytest.mark.parametrize("missing", ["proposal", "image_encoder", "text_encoder"])
def test_a_graph_missing_from_the_manifest_is_named(folder, missing):
    edit(folder, lambda m: m["graphs"].pop(missing))
    refused(folder, missing)


def test_a_missing_file_is_named(folder):
    (folder / "image_encoder.onnx").unlink()
    refused(folder, "image_encoder.onnx")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "one"}', '{"format": 1}', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(folder, "manifest")


def test_no_folder_and_an_empty_folder(tmp_path):
    refused(tmp_path / "nowhere", "no such folder", "vocabseg export")
    refused(tmp_path, "manifest.json")


def test_damaged_tensors_are_refused(folder):
    (folder / "tensors.safetensors").write_bytes(b"\xff" * 64)
    edit(folder, lambda m: m["files"].update({"tensors.safetensors": _record(folder, "tensors.safetensors")}))
    refused(folder, "tensors.safetensors")


def _record(folder, name):
    record = file_record(folder, name)
    return {"file": record.file, "bytes": record.bytes, "sha256": record.sha256}
