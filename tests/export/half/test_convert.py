"""FP16 graphs: what stays in float32 and why, valid files, and the same results within FP16's rounding."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vocabseg.export.graph.onnx_file import ExportError
from vocabseg.export.half.convert import add_half_graphs, write_half
from vocabseg.export.half.recipe import GraphRecipe, Keep, Recipe, default_recipe, read_recipe, write_recipe
from vocabseg.export.half.rounding import write_rounded
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.engines.host_engines import Engine
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.segmenter.segmenter import Segmenter

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def write_graph(path, nodes, inputs, outputs, weights, opset=21):
    """A graph; inputs and outputs are name -> shape, in float32, weights name -> array."""

    def values(shapes):
        return [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()]

    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def node(operation, inputs, outputs, name=None, **attributes):
    return helper.make_node(operation, inputs.split(), outputs.split(), name=name or operation, **attributes)


def recipe(*keep, name="graph", **fields):
    return Recipe(graphs={name: GraphRecipe(keep=list(keep), **fields)})


def by_name(path):
    return {one.name: one for one in onnx.load(path).graph.node}


def types(path):
    graph = onnx.load(path).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}


def run(path, precision="float16", **inputs):
    choice = Choice(name="onnxruntime", device="cpu", precision=precision, reason="")
    return Engine(path, choice).run({name: np.asarray(array, np.float32) for name, array in inputs.items()})


@pytest.fixture
def chain(tmp_path):
    """y = (x * 4) * 0.25, whose middle is beyond FP16 for x over 16,376."""
    nodes = [node("Mul", "x four", "m", "up"), node("Mul", "m quarter", "y", "down")]
    weights = {"four": np.float32(4), "quarter": np.float32(0.25)}
    return write_graph(tmp_path / "graph.onnx", nodes, {"x": ["n"]}, {"y": ["n"]}, weights)


def test_without_a_recipe_everything_is_fp16(chain, tmp_path):
    record = write_half(chain, tmp_path / "half.onnx", Recipe())
    assert types(tmp_path / "half.onnx") == {"x": HALF, "y": HALF}
    assert record.dtype == "float16"
    assert [one.dtype for one in (*record.inputs, *record.outputs)] == ["float16", "float16"]
    assert record.provenance["nodes"] == {"float16": 2, "float32": 0, "casts": 0}


def test_an_island_stands_behind_one_cast_at_each_border(tmp_path):
    nodes = [
        node("Mul", "x four", "m", "up"),
        node("Exp", "m", "e", "exp"),
        node("Log", "m", "l", "log"),
        node("Add", "e l", "s", "sum"),
        node("Mul", "s four", "y", "down"),
    ]
    weights = {"four": np.float32(4)}
    path = write_graph(tmp_path / "graph.onnx", nodes, {"x": ["n"]}, {"y": ["n"]}, weights)
    kept = recipe(Keep(operation="Exp", reason="a"), Keep(node="lo?", reason="b"), Keep(node="sum", reason="c"))
    record = write_half(path, tmp_path / "half.onnx", kept)
    casts = [one for one in onnx.load(tmp_path / "half.onnx").graph.node if one.op_type == "Cast"]
    assert [(one.input[0], helper.get_attribute_value(one.attribute[0])) for one in casts] == [
        ("m", FLOAT),
        ("s", HALF),
    ]
    assert record.provenance["float32"] == [
        {"reason": "a", "nodes": ["exp"]},
        {"reason": "b", "nodes": ["log"]},
        {"reason": "c", "nodes": ["sum"]},
    ]
    x = np.array([0.1, 1.0, 2.0], np.float32)
    m = np.float32(4) * x
    np.testing.assert_allclose(run(tmp_path / "half.onnx", x=x)["y"], 4 * (np.exp(m) + np.log(m)), rtol=4e-3)


def test_inputs_and_outputs_may_stay_float32_under_their_names(chain, tmp_path):
    kept = recipe(float32_inputs=["x"], float32_outputs=["y"])
    record = write_half(chain, tmp_path / "half.onnx", kept)
    assert types(tmp_path / "half.onnx") == {"x": FLOAT, "y": FLOAT}
    assert record.provenance["nodes"]["casts"] == 2
    np.testing.assert_array_equal(run(tmp_path / "half.onnx", x=[3, 5])["y"], [3, 5])


@pytest.mark.parametrize("kept", [False, True])
def test_the_rounded_graph_shows_an_overflow_and_the_island_that_cures_it(chain, tmp_path, kept):
    """ONNX Runtime takes back its own casts: the FP16 graph itself gives 60,000 here, whatever a GPU would give."""
    entries = [Keep(node="*", reason="the product reaches 240,000")] if kept else []
    write_half(chain, tmp_path / "half.onnx", recipe(*entries))
    record = write_rounded(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    assert types(tmp_path / "rounded.onnx") == {"x": HALF, "y": HALF}
    assert record.provenance["rounded"]
    assert run(tmp_path / "rounded.onnx", x=[60000.0])["y"] == [60000.0 if kept else np.inf]


def test_every_result_is_rounded_and_sums_are_not(tmp_path):
    nodes = [node("MatMul", "x w", "p", "product"), node("Add", "p b", "y", "sum")]
    generator = np.random.default_rng(0)
    weights = {"w": generator.standard_normal((64, 8), np.float32), "b": generator.standard_normal(8, np.float32)}
    path = write_graph(tmp_path / "graph.onnx", nodes, {"x": ["n", 64]}, {"y": ["n", 8]}, weights)
    write_half(path, tmp_path / "half.onnx", Recipe())
    write_rounded(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    x = generator.standard_normal((3, 64)).astype(np.float16)
    product = (x.astype(np.float64) @ weights["w"].astype(np.float16).astype(np.float64)).astype(np.float16)
    expected = (product.astype(np.float32) + weights["b"].astype(np.float16)).astype(np.float16)
    np.testing.assert_array_equal(run(tmp_path / "rounded.onnx", x=x)["y"], expected)


def test_weights_that_do_not_fit_keep_their_node_in_float32(tmp_path):
    nodes = [
        node("Mul", "x big", "m", "large"),
        node("Add", "m tiny", "a", "epsilon"),
        node("MatMul", "a w", "y", "product"),
    ]
    w = np.full((5, 5), 1e-6, np.float32)  # subnormal, and one below FP16's smallest
    w[0, 0] = 1e-9
    weights = {"big": np.float32(1e5), "tiny": np.float32(1e-12), "w": w}
    path = write_graph(tmp_path / "graph.onnx", nodes, {"x": ["n", 5]}, {"y": ["n", 5]}, weights)
    record = write_half(path, tmp_path / "half.onnx", Recipe())
    reasons = {one["nodes"][0]: one["reason"] for one in record.provenance["float32"]}
    assert reasons == {
        "large": "big reaches 1e+05, FP16 65504",
        "epsilon": "tiny holds 1e-12, which is 0 in FP16",
    }
    assert record.provenance["weights"] == {"total": 25, "zero": 1, "subnormal": 24}


def test_an_infinite_mask_fits(tmp_path):
    nodes = [node("Add", "x mask", "m"), node("Softmax", "m", "y", axis=-1)]
    weights = {"mask": np.array([[0, -np.inf]], np.float32)}
    path = write_graph(tmp_path / "graph.onnx", nodes, {"x": ["n", 2]}, {"y": ["n", 2]}, weights)
    assert write_half(path, tmp_path / "half.onnx", Recipe()).provenance["float32"] == []
    np.testing.assert_array_equal(run(tmp_path / "half.onnx", x=[[1, 2]])["y"], [[1, 0]])


def test_types_that_an_operation_fixes_are_left_alone(tmp_path):
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["r"], name="Resize", mode="nearest"),
        node("LayerNormalization", "r g b", "y mean", axis=-1),
        node("Shape", "mean", "s"),
        node("Cast", "s", "f", to=FLOAT),
        node("Sqrt", "f", "z"),
    ]
    weights = {"scales": np.array([1, 1, 2, 2], np.float32), "g": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}
    path = write_graph(
        tmp_path / "graph.onnx", nodes, {"x": [1, 2, 4, 4]}, {"y": [1, 2, 8, 8], "z": [4]}, weights, opset=19
    )
    write_half(path, tmp_path / "half.onnx", Recipe())
    graph = onnx.load(tmp_path / "half.onnx").graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert stored == {"scales": FLOAT, "g": HALF, "b": HALF}
    assert helper.get_attribute_value(by_name(tmp_path / "half.onnx")["Cast"].attribute[0]) == HALF


def test_what_feeds_a_node_stays_with_it_up_to_a_change_of_type(tmp_path):
    nodes = [
        node("Mul", "x c", "a", "before"),
        node("Cast", "a", "b", "cast", to=FLOAT),
        node("Mul", "b c", "d", "angle"),
        node("Sin", "d", "y", "sine"),
    ]
    path = write_graph(tmp_path / "graph.onnx", nodes, {"x": ["n"]}, {"y": ["n"]}, {"c": np.float32(3)})
    record = write_half(path, tmp_path / "half.onnx", recipe(Keep(operation="Sin", feeding=True, reason="angles")))
    assert set(record.provenance["float32"][0]["nodes"]) == {"cast", "angle", "sine"}
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert sorted(stored.values()) == [FLOAT, HALF]  # the factor, once for each side


def test_weights_in_a_file_of_their_own_and_shared_by_links_are_converted(tmp_path):
    weight = np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32)
    nodes = [node("MatMul", "x w", "y")]
    path = write_graph(tmp_path / "inline.onnx", nodes, {"x": ["n", 600]}, {"y": ["n", 600]}, {"w": weight})
    onnx.save(onnx.load(path), tmp_path / "graph.onnx", save_as_external_data=True, location="graph.onnx.data")
    (tmp_path / "other.data").hardlink_to(tmp_path / "graph.onnx.data")
    (tmp_path / "out").mkdir()
    record = write_half(tmp_path / "graph.onnx", tmp_path / "out" / "half.onnx", Recipe())
    model = onnx.load(tmp_path / "out" / "half.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), weight.astype(np.float16))
    assert record.total_bytes < 0.6 * weight.nbytes
    again = write_half(tmp_path / "graph.onnx", tmp_path / "out" / "half.onnx", Recipe())
    assert again == record  # the same bytes for the same graph


@pytest.mark.parametrize(
    ("kept", "error", "words"),
    [
        (recipe(Keep(node="missing", reason="r")), ExportError, "has no node 'missing'"),
        (recipe(float32_outputs=["z"]), ExportError, "has no 'z'"),
        (recipe(made_for="0" * 64), ConfigurationError, "was made for the graph 000000000000"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(chain, tmp_path, kept, error, words):
    with pytest.raises(error, match=words):
        write_half(chain, tmp_path / "half.onnx", kept)


def test_what_is_no_float32_graph_is_refused(chain, tmp_path):
    write_half(chain, tmp_path / "half.onnx", Recipe())
    with pytest.raises(ExportError, match="in FP16 already"):
        write_half(tmp_path / "half.onnx", tmp_path / "again.onnx", Recipe())
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ExportError, match="is no ONNX graph"):
        write_half(tmp_path / "text.onnx", tmp_path / "again.onnx", Recipe())


def test_recipes_are_written_as_they_are_read(tmp_path):
    given = Recipe(
        graphs={
            "proposal": GraphRecipe(
                made_for="ab" * 32,
                float32_outputs=["mask_logits"],
                keep=[Keep(operation="Sin", feeding=True, reason='a "quoted" reason'), Keep(node="*norm*", reason="é")],
            ),
            "image_encoder": GraphRecipe(),
        }
    )
    write_recipe(given, tmp_path / "recipe.toml")
    assert read_recipe(tmp_path / "recipe.toml") == given
    assert default_recipe().precision == "float16"
    assert default_recipe().graph("region_text_encoder") == default_recipe().graphs["text"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("precision = ", "cannot read the recipe"),
        ("[proposal]", "precision"),
        ('precision = "float16"\n[[a.keep]]\noperation = "Sin"', "reason"),
        ('precision = "float16"\n[[a.keep]]\nreason = "why"', "needs an operation or a node"),
        ('precision = "float16"\n[a]\nkeeep = 1', "keeep"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, words):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_recipe(tmp_path / "recipe.toml")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    shutil.copytree(demo_folder(), folder)
    add_half_graphs(open_bundle(folder, verify=False))
    return folder


def test_the_demo_model_in_fp16_keeps_the_parity_contract(demo):
    """Trained weights: region embeddings on the same proposals, and labels of the whole way, on rendered scenes."""
    from vocabseg.benchmarks.scenes.world import render_scene

    bundle = open_bundle(demo)
    assert bundle.manifest.variants.keys() == {"float16", "float16-rounded", "float16-onnxruntime"}
    full, half = (Segmenter(bundle, "auto", "onnxruntime", precision) for precision in ("float32", "float16"))
    cosines, same = [], []
    for index in range(8):
        image = render_scene(0, "test", index).image
        found = full.stages.propose(full.stages.prepare(image))
        given = (image, found.resized, found.masks.logits, found.query_embeddings, found.masks.padded_size)
        regions = full.describe(*given)
        cosines += (regions.embeddings * half.describe(*given).embeddings).sum(1).tolist()
        names = bundle.manifest.vocabulary
        same.append(np.mean(regions.classify(names).labels == half.propose(image).classify(names).labels))
    assert np.mean(cosines) >= 0.9995
    assert np.min(cosines) >= 0.998
    assert np.mean(same) >= 0.995
    assert np.min(cosines) < 1  # it is another arithmetic


def test_embeddings_of_another_recipe_are_not_taken_from_the_cache(demo):
    bundle = open_bundle(demo)
    segmenters = [Segmenter(bundle, "auto", "onnxruntime", precision) for precision in ("float32", "float16")]
    keys = [one.engine("text_encoder").key for one in segmenters]
    assert keys[0] == "onnxruntime-cpu-float32"
    digest = bundle.graph("text_encoder", "float16-rounded").digest()
    assert keys[1] == f"onnxruntime-cpu-float16-{digest[:16]}"


def test_a_bundle_without_fp16_graphs_says_how_to_make_them(tmp_path):
    from vocabseg.runtime.errors import BundleError

    copy = shutil.copytree(demo_folder(), tmp_path / "demo")
    with pytest.raises(BundleError, match=r"vocabseg build .* --precision fp16"):
        Segmenter(open_bundle(copy), "auto", "onnxruntime", "float16")
