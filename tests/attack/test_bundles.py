"""Bundles of strangers: whatever is wrong with one is told in a line, and nothing is read or written elsewhere."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.manifests import write_small_bundle
from vocabseg.cli import main
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.manifest import file_record, write_manifest
from vocabseg.runtime.bundle.outline import outline
from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.tokenizer import Tokenizer

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_folder(), tmp_path / "demo"))


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


NAMES = ["../../x", "/tmp/x", "a/b", "a\\b", "..", "", "a b", "a\n", "a\0", "\x1b[2J", "x" * 65, "ä"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_become_files_are_plain(folder: Path, name: str) -> None:
    pristine = (folder / "manifest.json").read_text()
    record = json.loads(pristine)["graphs"]["proposal"]
    for place, value in (
        ("graphs.text_encoder", (name,)),
        ("variants", {name: {"proposal": record}}),
        ("variants", {"float16": {name: record}}),
        ("prompts.query.graph", name),
    ):
        edit(folder, place, value)
        refused(folder)
        (folder / "manifest.json").write_text(pristine)
    assert open_bundle(folder)


def test_nothing_is_written_that_would_not_be_read(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    manifest = open_bundle(folder).manifest
    for change in ({"name": "\x1b[2J"}, {"variants": {"../x": {"proposal": manifest.graphs["proposal"]}}}):
        with pytest.raises(BundleError, match="nothing was changed"):
            write_manifest(msgspec.structs.replace(manifest, **change), folder)
        assert (folder / "manifest.json").read_bytes() == before


def test_build_writes_nothing_beside_the_bundle(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (demo / "manifest.json").read_text()
    for name in ("../../escaped", str(demo.parent / "escaped")):
        edit(demo, "graphs.proposal", (name,))
        before = sorted(demo.parent.rglob("*"))
        assert verdict(["build", str(demo)], capsys)
        assert sorted(demo.parent.rglob("*")) == before
        (demo / "manifest.json").write_text(text)


def verdict(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says of input that it refuses, in one line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert "fault in vocabseg" not in said
    assert said.count("\n") == 1
    assert said.strip().isprintable()
    return said


VALUES = [
    ("input.divisor", 0),
    ("input.divisor", 2**31),
    ("input.std", [0, 1, 1]),
    ("input.std", [1e-320, 1, 1]),
    ("input.mean", [1e30, 0, 0]),
    ("input.min_size", 10**12),
    ("input.max_size", 1e30),
    ("region.std", [0, 1, 1]),
    ("region.crop_size", 10**9),
    ("region.expand_ratio", 1e30),
    ("region.expand_ratio", 0),
    ("ensemble.temperature", 1e300),
    ("ensemble.weight", -1e300),
    ("prompts.query.prefix_ids", [1e30]),
    ("prompts.query.suffix_ids", [-1]),
    ("prompts.query.suffix_ids", [2**63]),
    ("format", 1e30),
    ("graphs.proposal.bytes", 1e30),
    ("graphs.proposal.bytes", -1),
    ("graphs.proposal.inputs.0.shape", [1, 3, 10**30, 4]),
    ("graphs.proposal.inputs.0.dtype", "bfloat16"),
    ("graphs.image_encoder.inputs.0.dtype", "float8_e4m3fn"),
    ("graphs.text_encoder.inputs.0.dtype", "float32"),
    ("graphs.proposal.inputs.0.name", "pixels"),
    ("graphs.proposal.outputs.0.name", "masks"),
    ("graphs.proposal.outputs", []),
    ("graphs.proposal.outputs.0.shape", ["batch", 6, "height/4", "width/4"]),
    ("graphs.proposal.outputs.0.shape", ["batch", 5, "height/4"]),
    ("graphs.proposal.outputs.1.shape", ["batch", 5, "width"]),
    ("graphs.image_encoder.inputs.0.shape", ["batch", 3, 336, 336]),
    ("graphs.image_encoder.outputs.0.shape", ["batch", 6]),
    ("graphs.text_encoder.outputs.0.shape", ["batch", 0]),
    ("graphs.text_encoder.file", "a\0b.onnx"),
    ("graphs.text_encoder.file", "x" * 5000 + ".onnx"),
    ("graphs.text_encoder.file", "\x1b]0;title\x07.onnx"),
    ("graphs.text_encoder.file", "."),
    ("graphs.text_encoder.file", "manifest.json"),
    ("graphs.text_encoder.external", [{"file": "", "bytes": 1, "sha256": ""}]),
    ("name", "\x1b[2J\x1b[31m"),
]


@pytest.mark.parametrize(("place", "value"), VALUES, ids=[f"{place}={str(value)[:24]!a}" for place, value in VALUES])
def test_values_out_of_range_are_told(folder: Path, place: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, place, value)
    refused(folder)
    verdict(["segment", "x.png", "-b", str(folder), "-c", "cat"], capsys)


def test_escapes_are_shown_and_not_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = verdict(["segment", "x.png", "-b", str(tmp_path / "\x1b[2J\u202ered"), "-c", "cat"], capsys)
    assert "\\x1b[2J\\u202ered" in said


@pytest.mark.parametrize("text", [DEEP, '{"format": 1, "x": ' + DEEP + "}", '{"format": 1' + " " * (65 << 20) + "}"])
def test_a_deep_or_endless_manifest_is_told(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    assert "manifest" in refused(folder)


def test_a_manifest_is_a_regular_file(folder: Path) -> None:
    path = folder / "manifest.json"
    for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p), lambda p: os.symlink(p, p), sparse):
        path.unlink()
        make(path)
        assert "manifest" in refused(folder)
        if path.is_dir():
            path.rmdir()
            path.write_text("")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("name", ["proposal.onnx", "proposal.onnx.data", "tokenizer.json", "tensors.safetensors"])
def test_a_listed_file_is_a_regular_one_inside(folder: Path, name: str) -> None:
    path = folder / name
    (folder.parent / name).write_bytes(path.read_bytes())
    for make in (os.mkfifo, os.mkdir, lambda p: os.symlink(folder.parent / name, p), lambda p: os.symlink(p, p)):
        path.unlink()
        make(path)
        assert name in refused(folder)
        if path.is_dir():
            path.rmdir()
            path.write_text("")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F128", "F32"])
def test_tensors_that_numpy_lacks_are_told(folder: Path, dtype: str) -> None:
    shape = [1, 2] if dtype != "F32" else [2**40, 2**40]
    head = json.dumps({"query.non_object_embedding": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}).encode()
    (folder / "tensors.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 4)
    record = file_record(folder, "tensors.safetensors")
    edit(folder, "files", {
        "a": {"file": "tensors.safetensors", "bytes": record.bytes, "sha256": record.sha256},
        "b": {"file": "tokenizer.json", "bytes": 2, "sha256": file_record(folder, "tokenizer.json").sha256},
    })  # fmt: skip
    assert "tensors.safetensors" in refused(folder)


@pytest.mark.parametrize("text", [DEEP, "{}", '{"pre_tokenizer": ' + DEEP + "}", "\ud800"])
def test_a_tokenizer_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_tokenizer_with_ids_beyond_a_tensor_is_told(demo: Path) -> None:
    document = json.loads((demo / "tokenizer.json").read_text())
    for change in ({"vocab": {**document["model"]["vocab"], "x": 10**30}}, {"vocab": {"x": -1}}):
        wrong = {**document, "model": {**document["model"], **change}}
        (demo / "tokenizer.json").write_text(json.dumps(wrong))
        with pytest.raises(BundleError):
            Tokenizer.from_file(demo / "tokenizer.json")


# Graphs


def weights(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[8], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def nested(tensor: onnx.TensorProto, depth: int = 0) -> onnx.GraphProto:
    """The tensor as a constant in a branch, `depth` branches deep."""
    graph = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "branch", [], [])
    for _ in range(depth):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "branch", [], [])
    return graph


def hidden(model: onnx.ModelProto, tensor: onnx.TensorProto, where: str) -> None:
    """Put a tensor into a part of the model where weights may stand."""
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "constant":
        model.graph.node.append(helper.make_node("Constant", [], ["z"], value=tensor))
    elif where == "tensors":
        node = model.graph.node.add(op_type="Anything")
        node.attribute.add(name="several", tensors=[tensor])
    elif where == "branch":
        model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=nested(tensor, 30)))
    elif where == "sparse":
        model.graph.sparse_initializer.add(values=tensor)
    elif where == "function":
        function = model.functions.add(name="f", domain="d")
        function.node.append(helper.make_node("Constant", [], ["z"], value=tensor))
    elif where == "training":
        model.training_info.add().algorithm.CopyFrom(nested(tensor))


PLACES = ["initializer", "constant", "tensors", "branch", "sparse", "function", "training"]


@pytest.mark.parametrize("where", PLACES)
def test_weights_are_found_wherever_they_hide(folder: Path, where: str) -> None:
    model = onnx.load(folder / "proposal.onnx", load_external_data=False)
    hidden(model, weights("evil.data"), where)
    assert outline(model.SerializeToString()).locations == {"proposal.onnx.data", "evil.data"}


LOCATIONS = [
    "evil.data", "../evil.data", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "./proposal.onnx.data", "text_encoder.onnx.data",
    "sub/../proposal.onnx.data", "", "proposal.onnx.data\0",
]  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS)
def test_only_listed_weights_are_taken(folder: Path, location: str) -> None:
    model = onnx.load(folder / "proposal.onnx", load_external_data=False)
    hidden(model, weights(location), "initializer")
    (folder / "proposal.onnx").write_bytes(model.SerializeToString())
    (folder / "evil.data").write_bytes(b"\0" * 32)
    record_again(folder, "proposal")
    assert "weights in" in refused(folder)


def test_a_listed_name_that_means_memory_is_refused(folder: Path) -> None:
    location = "*/_ORT_MEM_ADDR_/*"
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / location).write_bytes(b"\0" * 32)
    model = onnx.load(folder / "proposal.onnx", load_external_data=False)
    model.graph.initializer[0].CopyFrom(weights(location))
    (folder / "proposal.onnx").write_bytes(model.SerializeToString())
    record_again(folder, "proposal")
    record = file_record(folder, location)
    edit(folder, "graphs.proposal.external", [{"file": location, "bytes": 32, "sha256": record.sha256}])
    assert "weights in" in refused(folder)


def test_the_order_of_an_entrys_fields_does_not_hide_it() -> None:
    """Protobuf takes the last of a field that comes twice, and fields in any order."""

    def text(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    for entry in (
        text(2, b"evil") + text(1, b"location"),
        text(1, b"location") + text(2, b"proposal.onnx.data") + text(2, b"evil"),
        text(1, b"offset") + text(2, b"evil") + text(1, b"location"),
    ):
        model = text(7, text(5, text(8, b"w") + text(13, entry)))
        assert "evil" in outline(model).locations
        parsed = onnx.ModelProto.FromString(model).graph.initializer[0].external_data[0]
        assert (parsed.key, parsed.value) == ("location", "evil")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\xff" * 50, b"\x3a\xff\xff\xff\xff\x0f", b"\x3b", b"\x3a\x03\x5a\x7f\x00"]
)
def test_a_file_that_is_no_graph_is_told(folder: Path, content: bytes) -> None:
    (folder / "proposal.onnx").write_bytes(content)
    record_again(folder, "proposal")
    assert "proposal.onnx" in refused(folder)


def test_another_format_under_a_graphs_name_is_refused(folder: Path) -> None:
    """OpenVINO goes by the suffix: an .xml brings weights of its own."""
    for name in ("proposal.xml", "proposal.ort", "proposal.tflite"):
        (folder / name).write_bytes((folder / "proposal.onnx").read_bytes())
        edit(folder, "graphs.proposal.file", name)
        assert ".onnx" in refused(folder)


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "other"


def reshape_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = 7


def retype_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16


@pytest.mark.parametrize("change", [rename_output, reshape_output, retype_input])
@pytest.mark.parametrize("graph", ["proposal", "image_encoder", "text_encoder"])
def test_a_graph_has_the_inputs_and_outputs_of_its_record(folder: Path, graph: str, change: Any) -> None:
    model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
    change(model)
    (folder / f"{graph}.onnx").write_bytes(model.SerializeToString())
    record_again(folder, graph)
    assert "the manifest says" in refused(folder)


def test_a_file_swapped_after_the_bundle_was_opened_does_not_run(demo: Path, tmp_path: Path) -> None:
    import vocabseg

    image = np.zeros((64, 64, 3), np.uint8)
    for name in ("image_encoder.onnx", "proposal.onnx.data", "text_encoder.onnx", "tokenizer.json"):
        segmenter = vocabseg.load(demo)
        good = (demo / name).read_bytes()
        (demo / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(BundleError, match=name):
            segmenter(image, [name])
        (demo / name).write_bytes(good)
        assert vocabseg.load(demo)(image, [name]).labels.shape == (64, 64)


def test_what_was_not_verified_is_checked_when_it_is_used(demo: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    assert Segmenter(open_bundle(demo, verify=False))(image, ["cat"]).labels.shape == (64, 64)
    for name in ("proposal.onnx.data", "text_encoder.onnx", "tokenizer.json"):
        good = (demo / name).read_bytes()
        (demo / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(BundleError, match=name):
            Segmenter(open_bundle(demo, verify=False))(image, [name])
        (demo / name).write_bytes(good)
    model = onnx.load(demo / "proposal.onnx", load_external_data=False)
    hidden(model, weights("evil.data"), "initializer")
    (demo / "proposal.onnx").write_bytes(model.SerializeToString())
    record_again(demo, "proposal")
    with pytest.raises(BundleError, match=r"evil\.data"):
        Segmenter(open_bundle(demo, verify=False))(image, ["cat"])


def test_a_file_that_was_merely_copied_anew_still_runs(demo: Path) -> None:
    import vocabseg

    segmenter = vocabseg.load(demo)
    for path in demo.glob("*.onnx*"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert segmenter(np.zeros((64, 64, 3), np.uint8), ["cat"]).labels.shape == (64, 64)


def test_an_output_that_is_not_as_declared_is_told(demo: Path) -> None:
    """A graph's declared shapes are a promise that engines do not hold it to."""
    import vocabseg

    model = onnx.load(demo / "image_encoder.onnx", load_external_data=False)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = [f"{name}_whole" if name == output else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.int64), "two"))
    model.graph.node.append(helper.make_node("Gather", [f"{output}_whole", "two"], [output], axis=1))
    (demo / "image_encoder.onnx").write_bytes(model.SerializeToString())
    record_again(demo, "image_encoder")
    segmenter = vocabseg.load(demo, engine="onnxruntime")
    with pytest.raises(BundleError, match="image_features"):
        segmenter(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), ["cat"])


def test_two_files_of_weights_cannot_change_places(folder: Path) -> None:
    """Digests name what embeddings are cached under."""
    record = open_bundle(folder).graph("proposal")
    one, two = {"file": "a", "bytes": 1, "sha256": "0" * 64}, {"file": "b", "bytes": 1, "sha256": "1" * 64}
    digests = set()
    for pair in ([one, two], [{**one, "file": "b"}, {**two, "file": "a"}]):
        digests.add(msgspec.convert({**msgspec.to_builtins(record), "external": pair}, type(record)).digest())
    assert len(digests) == 2
