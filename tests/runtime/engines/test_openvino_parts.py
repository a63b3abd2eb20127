"""OpenVINO in bfloat16: the first layers stay in float32, and what is cut in two computes what the whole does."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.engines.host_engines import Engine
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.engines.openvino_parts import BETWEEN, FIRST_SHARE, PRODUCTS, first_layers

WIDTH, PRODUCTS_HERE = 64, 24
openvino = pytest.importorskip("openvino")


def needs(feature: str) -> pytest.MarkDecorator:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return pytest.mark.skipif(feature not in flags, reason=f"this CPU has no {feature}")


def residual_network(
    path: Path, products: int = PRODUCTS_HERE, leak: bool = False, mask: bool = False, turned: bool = False
) -> Path:
    """y of x (batch, WIDTH): embedded by a product, then z += relu(z w) for each other product.

    With `leak` the embedded x is added again in the end, with `mask` a second input. If `turned`, z is (WIDTH, batch).
    """
    draw = np.random.default_rng(0)
    weights = [draw.normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32) for _ in range(products)]
    nodes, value = [helper.make_node("MatMul", ["x", "w0"], ["embedded" if turned else "sum0"])], "sum0"
    if turned:
        nodes.append(helper.make_node("Transpose", ["embedded"], ["sum0"], perm=[1, 0]))
    for block in range(1, products):
        nodes += [
            helper.make_node("MatMul", [f"w{block}", value] if turned else [value, f"w{block}"], [f"product{block}"]),
            helper.make_node("Relu", [f"product{block}"], [f"bent{block}"]),
            helper.make_node("Add", [value, f"bent{block}"], [f"sum{block}"]),
        ]
        value = f"sum{block}"
    if turned:
        nodes.append(helper.make_node("Transpose", [value], ["back"], perm=[1, 0]))
        value = "back"
    nodes.append(helper.make_node("Add", [value, "sum0" if leak else "mask" if mask else value], ["y"]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "mask")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])]
    named = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(weights)]
    graph = helper.make_graph(nodes, "residual", inputs[: 1 + mask], outputs, named)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def parts_of(path: Path) -> list[tuple[list[str], int]]:
    """Of each part: its inputs, and how many products it has."""
    return [
        (
            sorted(one.any_name for one in part.inputs),
            sum(node.get_type_name() in PRODUCTS for node in part.get_ordered_ops()),
        )
        for part in first_layers(openvino.Core().read_model(path))
    ]


@pytest.mark.parametrize(("products", "first"), [(24, 2), (25, 3), (75, 7)])
def test_a_twelfth_of_the_products_rounded_up_comes_first(tmp_path, products, first):
    path = residual_network(tmp_path / "graph.onnx", products)
    assert parts_of(path) == [(["x"], first), ([BETWEEN], products - first)]


def test_inputs_go_to_the_part_that_uses_them(tmp_path):
    path = residual_network(tmp_path / "graph.onnx", mask=True)
    assert [inputs for inputs, _ in parts_of(path)] == [["x"], [BETWEEN, "mask"]]


def test_a_network_without_a_bottleneck_stays_whole(tmp_path):
    assert parts_of(residual_network(tmp_path / "graph.onnx", leak=True)) == [(["x"], PRODUCTS_HERE)]


def test_a_tensor_whose_samples_are_on_another_axis_is_not_cut(tmp_path):
    path = residual_network(tmp_path / "graph.onnx", turned=True)
    assert parts_of(path) == [(["x"], PRODUCTS_HERE)]


def test_the_parts_of_the_demo_encoder_compute_what_the_whole_does():
    path = demo_folder() / "image_encoder.onnx"
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    whole = core.read_model(path)
    size = [dimension.get_length() for dimension in list(whole.inputs[0].partial_shape)[1:]]
    crops = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    expected = core.compile_model(whole, "CPU", exact)([crops])[0]
    first, second = (core.compile_model(part, "CPU", exact) for part in first_layers(core.read_model(path)))
    np.testing.assert_allclose(second([first([crops])[0]])[0], expected, rtol=1e-4, atol=1e-5)


def products(path: Path, precision: str) -> list[str]:
    """The precisions in which an engine's compiled parts multiply."""
    engine = Engine(path, Choice(name="openvino", device="cpu", precision=precision, reason=""))
    engine.run({"x": np.ones((4, WIDTH), np.float32)})
    (graph,) = engine._opened.values()
    nodes = [
        node.get_rt_info() for part in graph._parts for node in part._compiled.get_runtime_model().get_ordered_ops()
    ]
    return [info["runtimePrecision"].value for info in nodes if info["layerType"].value == "FullyConnected"]


@needs("amx_bf16")
def test_only_the_later_layers_run_in_bfloat16(tmp_path):
    path = residual_network(tmp_path / "graph.onnx")
    first = round(FIRST_SHARE * PRODUCTS_HERE)
    assert products(path, "bfloat16") == ["f32"] * first + ["bf16"] * (PRODUCTS_HERE - first)
    assert products(path, "float32") == ["f32"] * PRODUCTS_HERE
