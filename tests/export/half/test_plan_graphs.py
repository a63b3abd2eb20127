"""Graphs that plans are built from: in bfloat16, and in eight bits beside FP16."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.export.tensorrt.quantised import add_every_precision
from vocabseg.export.half.convert import add_half_graphs, add_plan_graphs, stale_graphs, write_half
from vocabseg.export.half.recipe import GraphRecipe, Keep, Recipe
from vocabseg.export.half.rounding import write_rounded
from vocabseg.export.tensorrt.operators import check_operators
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.errors import BundleError

FEEDS = {
    "proposal": {"image": (1, 3, 64, 96)},
    "image_encoder": {"crops": (3, 3, 64, 64)},
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return add_every_precision(shutil.copytree(demo_folder(), tmp_path_factory.mktemp("plan-graphs") / "demo"))


@pytest.fixture
def copy(tmp_path):
    return open_bundle(shutil.copytree(demo_folder(), tmp_path / "demo"))


def run(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = {value.name: inputs[value.name].astype(np.float16 if "16" in value.type else np.float32)
             for value in session.get_inputs()}  # fmt: skip
    return {name: array.astype(np.float32) for name, array in zip(names, session.run(names, given), strict=True)}


def rounded(bundle, graph, variant, folder):
    """The graph of a variant with every result rounded as on a GPU."""
    for path in bundle.graph_path(graph, variant).parent.iterdir():
        shutil.copy(path, folder / path.name)
    write_rounded(folder / f"{graph}.onnx", folder / "rounded.onnx")
    return folder / "rounded.onnx"


def cosine(first, second):
    first, second = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


@pytest.mark.parametrize("graph", list(FEEDS))
@pytest.mark.parametrize(
    ("variant", "like", "least"),
    [("bfloat16", "float32", 0.999), ("int8-float16", "int8", 0.999), ("fp8-float16", "fp8", 0.98)],
)
def test_results_are_those_of_the_graph_it_was_made_from(demo, tmp_path, graph, variant, like, least):
    generator = np.random.default_rng(1)
    inputs = {name: generator.normal(size=shape).astype(np.float32) for name, shape in FEEDS[graph].items()}
    expected = run(demo.graph_path(graph, like), inputs)
    found = run(rounded(demo, graph, variant, tmp_path), inputs)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert cosine(found[name], array) > least, name
        if like == "float32":
            assert not np.array_equal(found[name], array)


def test_bfloat16_has_float32_inputs_and_outputs_in_an_opset_that_knows_it(demo):
    for name, record in demo.manifest.graphs_in("bfloat16").items():
        assert record.opset == 22
        assert {tensor.dtype for tensor in (*record.inputs, *record.outputs)} <= {"float32", "int64"}
        assert record.dtype == "bfloat16"
        assert record.provenance["nodes"]["bfloat16"] > 50
        assert check_operators(demo.graph_path(name, "bfloat16")) == []


def test_eight_bits_keep_what_the_fp16_graph_keeps(demo):
    half, low = (demo.graph("proposal", precision) for precision in ("float16", "int8-float16"))
    kept = [{node for entry in record.provenance["float32"] for node in entry["nodes"]} for record in (half, low)]
    assert kept[0] == kept[1] != set()
    assert [tensor.dtype for tensor in low.outputs] == [tensor.dtype for tensor in half.outputs]
    assert (low.dtype, low.provenance["made_from"]) == ("int8", demo.graph("proposal", "int8").digest())
    assert low.provenance["versions"]


def test_a_recipe_says_what_else_stays(copy, tmp_path):
    keep = [Keep(operation="Conv", reason="to see it")]
    recipe = Recipe(precision="bfloat16", graphs={"image_encoder": GraphRecipe(keep=keep)})
    made = add_plan_graphs(copy, "bfloat16", recipe)
    assert made.graph("image_encoder", "bfloat16").provenance["nodes"]["float32"] > 10


def test_graphs_whose_source_has_changed_are_stale(demo, copy):
    assert stale_graphs(demo, demo.manifest.graphs, "int8") == []
    assert stale_graphs(copy, copy.manifest.graphs, "bfloat16") == list(copy.manifest.graphs)
    add_plan_graphs(add_half_graphs(copy), "bfloat16")
    again = open_bundle(copy.folder)
    assert stale_graphs(again, again.manifest.graphs, "bfloat16") == []
    assert again.manifest.variants.keys() >= {"float16", "bfloat16"}


def test_without_calibrated_graphs_the_command_is_named(copy):
    with pytest.raises(BundleError, match=r"has no proposal in int8: make it with `vocabseg calibrate"):
        add_plan_graphs(copy, "int8")
    assert not (copy.folder / "graphs").exists()


@pytest.mark.parametrize(("scale", "stays"), [(3e-5, False), (2e-7, True), (1e-9, True)])
def test_scales_that_fp16_does_not_hold_stay_in_float32(tmp_path, scale, stays):
    scales = np.full(40, 0.01, np.float32)
    scales[7] = scale
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scales", "zero"], ["dequantised"], axis=1, name="weights"),
        helper.make_node("MatMul", ["x", "dequantised"], ["y"], name="product"),
    ]
    constants = {"w": np.ones((8, 40), np.int8), "scales": scales, "zero": np.zeros(40, np.int8)}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 40])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "g.onnx")
    record = write_half(tmp_path / "g.onnx", tmp_path / "half.onnx", Recipe())
    kept = [node for entry in record.provenance["float32"] for node in entry["nodes"]]
    assert kept == (["weights"] if stays else [])
    if stays:
        assert f"scales holds {scale:.4g}" in record.provenance["float32"][0]["reason"]
