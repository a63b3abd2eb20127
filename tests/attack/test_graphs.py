"""Graphs of strangers: only listed weights are read, only what was checked runs, and outputs are as declared."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.attack.broken import edit, record_again, refused
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.bundle.manifest import file_record
from vocabseg.runtime.bundle.outline import outline
from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.segmenter.segmenter import Segmenter


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
