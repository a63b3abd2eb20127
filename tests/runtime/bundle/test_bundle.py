"""The bundle's contract: what is accepted, and the one line that says why not."""

import contextlib
import json
import os

import numpy as np
import pytest

from tests.manifests import write_graph, write_small_bundle
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.bundle.manifest import (
    FORMAT,
    TensorRecord,
    file_record,
    resolve_shape,
)
from vocabseg.runtime.bundle.variants import new_variants
from vocabseg.runtime.errors import BundleError


@pytest.fixture
def folder(tmp_path):
    return write_small_bundle(tmp_path / "bundle")


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


def make_variant(folder, precision="float16", name="proposal", content="half"):
    with new_variants(folder) as variants:
        place = variants.place(precision)
        variants.add(precision, name, write_graph(place, name, content))
        rounded = write_graph(place, name, content, f"{name}.rounded.onnx", f"{name}.onnx.data")
        variants.add(f"{precision}-rounded", name, rounded, place=precision)


def made_as(bundle):
    """The `content` that `make_variant` got: the end of the weights."""
    return bundle.graph_path("proposal", "float16").with_name("proposal.onnx.data").read_bytes()[32:].decode()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_variant_stands_beside_the_float32_graphs(folder):
    make_variant(folder)
    make_variant(folder, name="image_encoder")
    bundle = open_bundle(folder)
    assert bundle.graph_path("proposal") == folder / "proposal.onnx"
    assert bundle.graph_path("proposal", "float16") == folder / "graphs" / "float16" / "proposal.onnx"
    assert bundle.graph("proposal", "float16").provenance == {"made_from": "0" * 64}
    assert bundle.graph_path("proposal", "float16-rounded").name == "proposal.rounded.onnx"
    assert bundle.manifest.variants.keys() == {"float16", "float16-rounded"}
    assert bundle.manifest.variants["float16"].keys() == {"proposal", "image_encoder"}
    assert [path for path in files(folder) if ".part" in path] == []


def test_a_variant_may_name_files_that_the_bundle_has(folder):
    with new_variants(folder) as variants:
        variants.add("int8", "text_encoder", open_bundle(folder).graph("text_encoder"))
    assert open_bundle(folder).graph_path("text_encoder", "int8") == folder / "text_encoder.onnx"


def test_a_new_variant_takes_the_place_of_an_old_one(folder):
    make_variant(folder, content="old")
    make_variant(folder, content="newer")
    assert made_as(open_bundle(folder)) == "newer"


@pytest.mark.parametrize("survived", range(5))
@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_that_dies_while_it_adds_a_variant_leaves_a_valid_bundle(folder, monkeypatch, survived, replaced):
    """Every change of the bundle is a rename: die at each in turn."""
    if replaced:
        make_variant(folder, content="old")
    replace, calls = os.replace, iter(range(100))

    def dying(source, target):
        if next(calls) >= survived:
            raise KeyboardInterrupt
        replace(source, target)

    renames = 3 + 1 + int(replaced)  # three files, the manifest with them, the manifest without older ones
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with contextlib.suppress(KeyboardInterrupt) if survived >= renames else pytest.raises(KeyboardInterrupt):
            make_variant(folder, content="newer")
    bundle = open_bundle(folder)
    if bundle.manifest.variants:
        expected = "newer" if survived >= renames else "old"
        assert made_as(bundle) == expected
    make_variant(folder, content="newest")
    assert made_as(open_bundle(folder)) == "newest"


def test_an_error_while_a_variant_is_written_changes_nothing(folder):
    before = {name: (folder / name).read_bytes() for name in files(folder)}

    def write_a_part():
        with new_variants(folder) as variants:
            (variants.place("float16") / "proposal.onnx").write_bytes(b"part of it")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write_a_part()
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_a_changed_byte_in_a_variant_is_found(folder):
    make_variant(folder)
    path = folder / "graphs" / "float16" / "proposal.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    refused(folder, "float16", "proposal.onnx", "SHA-256")


def test_a_variant_outside_the_bundle_is_refused(folder):
    make_variant(folder)
    edit(folder, lambda m: m["variants"]["float16"]["proposal"].update(file="graphs/../../proposal.onnx"))
    refused(folder, "outside")


@pytest.mark.parametrize(
    ("precision", "command"),
    [("float16", "build {} --precision fp16"), ("int8", "calibrate {} --precision int8")],
)
def test_a_precision_that_is_not_there_names_the_command_that_makes_it(folder, precision, command):
    with pytest.raises(BundleError) as caught:
        open_bundle(folder).graph_path("proposal", precision)
    assert f"vocabseg {command.format(folder)}" in str(caught.value)
    with pytest.raises(BundleError, match="export it again"):
        open_bundle(folder).graph("depth", precision)


def test_a_variant_needs_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="no bundle"), new_variants(tmp_path):
        pass


def test_shapes_follow_the_sizes_of_dynamic_dimensions():
    logits = TensorRecord(name="mask_logits", dtype="float32", shape=["batch", 100, "height/4", "width/4"])
    assert resolve_shape(logits, {"batch": 2, "height": 640, "width": 864}) == (2, 100, 160, 216)
    with pytest.raises(BundleError, match="'width/4'"):
        resolve_shape(logits, {"batch": 2, "height": 640})
    with pytest.raises(BundleError, match="height=642"):
        resolve_shape(logits, {"batch": 2, "height": 642, "width": 864})
