"""Graphs with ONNX Runtime's own operations compute what the standard ones do."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.export.graph.small_graphs import operations
from tests.export.model.small_models import CROP, small_clip
from vocabseg.export.graph.editor import Editor
from vocabseg.export.graph.fuse_onnxruntime import fuse
from vocabseg.export.graph.onnx_file import load_graph, save_graph
from vocabseg.export.graph.trace import export_graph
from vocabseg.export.graph.values import infer_types
from vocabseg.export.half.convert import write_half
from vocabseg.export.half.recipe import GraphRecipe, Keep, Recipe
from vocabseg.export.model.towers import prune_last_block
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle

CPU = ["CPUExecutionProvider"]


def run(path, inputs):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=CPU)
    return session.run(None, inputs)


def fused(path, target, kept=(), group_norm=False):
    """The graph at `path` fused, still in float32 so that a CPU has all the operations."""
    model = load_graph(path)
    infer_types(model)
    counts = fuse(model, set(kept), group_norm)
    Editor(model).forget_types()
    save_graph(model, target, ("com.microsoft",))
    return counts


def inputs_for(record, sizes, seed=0):
    generator = np.random.default_rng(seed)
    found = {}
    for one in record.inputs:
        shape = [sizes.get(size, size) for size in one.shape]
        whole = one.dtype.startswith("int")
        found[one.name] = generator.integers(0, 20, shape) if whole else generator.standard_normal(shape, np.float32)
    return found


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("image_encoder", {"attention": 1}),  # a ResNet with attention pooling
        ("text_encoder", {"attention": 2, "quick_gelu": 2, "skip_layer_norm": 3}),  # causal
        ("proposal", {"attention": 6, "skip_layer_norm": 9}),  # attention to the image
    ],
)
def test_the_demo_models_graphs_are_fused_and_equal(tmp_path, name, counts):
    bundle = open_bundle(demo_folder())
    found = fused(bundle.graph_path(name), tmp_path / "fused.onnx")
    assert {key: value for key, value in found.items() if value} == counts
    assert not operations(tmp_path / "fused.onnx").keys() & {"Softmax", "Shape", "Expand", "Range"}
    for batch, height, width in ((1, 64, 96), (3, 128, 32)):
        inputs = inputs_for(bundle.graph(name), {"batch": batch, "height": height, "width": width})
        expected, result = run(bundle.graph_path(name), inputs), run(tmp_path / "fused.onnx", inputs)
        for wanted, output in zip(expected, result, strict=True):
            assert output.shape == wanted.shape
            np.testing.assert_allclose(output, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A small vision transformer, with stacked projections of queries, keys and values."""
    path = tmp_path_factory.mktemp("vit") / "image_encoder.onnx"
    clip = small_clip()
    size = (3, CROP, CROP)
    dimensions = {"crops": ("batch", *size), "image_features": ("batch", clip.embed_dim)}
    tower = prune_last_block(clip.make_image_tower(CROP))
    return path, export_graph(tower, {"crops": torch.randn(2, *size)}, dimensions, path)


def test_a_vision_transformers_stacked_projections_are_split(vit, tmp_path):
    path, record = vit
    counts = fused(path, tmp_path / "fused.onnx")
    assert (counts["attention"], counts["quick_gelu"], counts["skip_layer_norm"]) == (2, 2, 3)
    assert "Split" not in operations(tmp_path / "fused.onnx")
    inputs = inputs_for(record, {"batch": 3})
    np.testing.assert_allclose(run(tmp_path / "fused.onnx", inputs)[0], run(path, inputs)[0], atol=1e-5, rtol=1e-4)


def test_biases_of_keys_and_values_leave_the_attention(tmp_path):
    """Large biases, so that a wrong one would show: adding to all keys changes nothing, the values' moves on."""
    generator = np.random.default_rng(0)
    width, heads = 16, 2
    weights = {f"w{name}": generator.standard_normal((width, width), np.float32) for name in "qkvo"}
    weights |= {f"b{name}": 3 * generator.standard_normal(width).astype(np.float32) for name in "qkvo"}
    weights["shape"], weights["flat"] = np.array([0, 0, heads, width // heads]), np.array([0, 0, width])
    nodes, turns = [], {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"p{name}"], f"product_{name}"),
            helper.make_node("Add", [f"p{name}", f"b{name}"], [f"l{name}"], f"linear_{name}"),
            helper.make_node("Reshape", [f"l{name}", "shape"], [f"r{name}"], f"heads_{name}"),
            helper.make_node(
                "Transpose", [f"r{name}"], [f"t{name}"], f"turn_{name}", perm=turns.get(name, [0, 2, 1, 3])
            ),
        ]
    nodes += [
        helper.make_node("MatMul", ["tq", "tk"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], "softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "tv"], ["mixed"], "mix"),
        helper.make_node("Transpose", ["mixed"], ["back"], "back", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "flat"], ["merged"], "merge"),
        helper.make_node("MatMul", ["merged", "wo"], ["po"], "product_o"),
        helper.make_node("Add", ["po", "bo"], ["y"], "linear_o"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", width]) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "g.onnx")
    assert fused(tmp_path / "g.onnx", tmp_path / "fused.onnx")["attention"] == 1
    assert operations(tmp_path / "fused.onnx") == {"MatMul": 4, "Add": 2, "MultiHeadAttention": 1}
    x = {"x": generator.standard_normal((2, 5, width), np.float32)}
    expected, result = run(tmp_path / "g.onnx", x)[0], run(tmp_path / "fused.onnx", x)[0]
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_nodes_of_a_recipe_are_not_fused(vit, tmp_path):
    path, _ = vit
    graph = onnx.load(path, load_external_data=False).graph
    softmax = next(node.name for node in graph.node if node.op_type == "Softmax")
    kept = Recipe(graphs={"image_encoder": GraphRecipe(keep=[Keep(node=softmax, reason="tiny scores")])})
    record = write_half(path, tmp_path / "half.onnx", kept, onnxruntime=True)
    assert record.provenance["fused"]["attention"] == 1
    assert record.provenance["float32"] == [{"reason": "tiny scores", "nodes": [softmax]}]
    assert operations(tmp_path / "half.onnx")["Softmax"] == 1


def test_fp16_graphs_for_onnxruntime_keep_to_the_rounding_of_fp16(vit, tmp_path):
    path, record = vit
    write_half(path, tmp_path / "half.onnx", Recipe(), "image_encoder", onnxruntime=True)
    inputs = inputs_for(record, {"batch": 3})
    expected = run(path, inputs)[0]
    found = run(tmp_path / "half.onnx", {"crops": inputs["crops"].astype(np.float16)})[0].astype(np.float32)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.9999


def test_group_normalisation_is_channels_last(tmp_path):
    """No CPU has the operation: it gets a body of standard ones, by its documentation, and the graph is compared."""
    channels, groups = 128, 32
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "h", "w"]) for name in "xy"]
    generator = np.random.default_rng(0)
    weights = [numpy_helper.from_array(generator.standard_normal(channels, np.float32), name) for name in ("g", "b")]
    nodes = [helper.make_node("GroupNormalization", ["x", "g", "b"], ["y"], "norm", num_groups=groups, epsilon=1e-3)]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "g.onnx")
    assert fused(tmp_path / "g.onnx", tmp_path / "fused.onnx", group_norm=True)["group_norm"] == 1
    assert operations(tmp_path / "fused.onnx") == {"Transpose": 2, "GroupNorm": 1}

    model = onnx.load(tmp_path / "fused.onnx")
    own = next(node for node in model.graph.node if node.op_type == "GroupNorm")
    settings = {one.name: helper.get_attribute_value(one) for one in own.attribute}
    assert settings == {"groups": groups, "activation": 0, "channels_last": 1, "epsilon": pytest.approx(1e-3)}
    body = [
        helper.make_node("Transpose", ["i"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("GroupNormalization", ["first", "s", "o"], ["n"], num_groups=groups, epsilon=1e-3),
        helper.make_node("Transpose", ["n"], ["out"], perm=[0, 2, 3, 1]),
    ]
    del own.attribute[:]
    own.domain = "documented"
    model.functions.append(
        helper.make_function("documented", "GroupNorm", ["i", "s", "o"], ["out"], body, [helper.make_opsetid("", 21)])
    )
    model.opset_import.append(helper.make_opsetid("documented", 1))
    onnx.save(model, tmp_path / "documented.onnx")
    x = {"x": generator.standard_normal((1, channels, 3, 5), np.float32)}
    np.testing.assert_allclose(run(tmp_path / "documented.onnx", x)[0], run(tmp_path / "g.onnx", x)[0], atol=1e-5)


def test_group_normalisation_with_other_channels_stays(tmp_path):
    """The demo model has fewer than the provider's kernels are made for."""
    path = open_bundle(demo_folder()).graph_path("proposal")
    assert fused(path, tmp_path / "fused.onnx", group_norm=True)["group_norm"] == 0
    assert operations(tmp_path / "fused.onnx")["GroupNormalization"] == 7
