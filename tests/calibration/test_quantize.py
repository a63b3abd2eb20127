"""Graphs with Q/DQ: where it stands, that it is valid everywhere, and how near the result is."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.calibration import planted
from vocabseg.calibration.failures import CalibrationError
from vocabseg.calibration.graphs.linear_nodes import block_of, ends, linear_nodes, load_graph
from vocabseg.calibration.graphs.quantize import write_quantised
from vocabseg.calibration.graphs.scales import Scheme, quantised_weights, to_fp8, weight_scales
from vocabseg.calibration.graphs.smooth import smoothing_factors
from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.calibration.observe.tensor_observer import TensorObserver
from vocabseg.calibration.search.fidelity import Comparator
from vocabseg.export.tensorrt.operators import check_operators
from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.engines.choose import choose, installed
from vocabseg.runtime.engines.host_engines import Engine

WIDTH = planted.WIDTH


def network(path: Path, outlier: float = 1.0) -> Path:
    """LayerNormalization with one large channel, two users of it, attention-like product, an output projection."""
    gamma = np.ones(WIDTH, np.float32)
    gamma[3] = outlier
    w2 = planted.weights(2)
    w2[3] /= outlier
    nodes = [
        ("LayerNormalization", ["x", "gamma", "beta"], "normal", {"axis": -1}),
        ("MatMul", ["normal", "w1"], "left", {}),
        ("MatMul", ["normal", "w2"], "right", {}),
        ("Transpose", ["right"], "turned", {"perm": [0, 2, 1]}),
        ("MatMul", ["left", "turned"], "scores", {}),
        ("Softmax", ["scores"], "attention", {"axis": -1}),
        ("MatMul", ["attention", "right"], "mixed", {}),
        ("MatMul", ["mixed", "w3"], "y", {}),
    ]
    w1 = planted.weights(1, 0.1)
    w1[3] /= outlier
    constants = {"gamma": gamma, "beta": np.zeros(WIDTH, np.float32), "w1": w1, "w2": w2, "w3": planted.weights(3)}
    return planted.save(path, nodes, constants, rank=3)


def ranges(path: Path) -> dict[str, Statistics]:
    found: dict[str, Statistics] = {}
    names = [target.activation for target in linear_nodes(load_graph(path))]
    TensorObserver(path, names, names).observe(planted.feeds(3, 8, seed=1), found)
    return found


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_placement(kind: str, tmp_path: Path) -> None:
    source, target = network(tmp_path / "float.onnx"), tmp_path / "low.onnx"
    record = write_quantised(source, target, Scheme(kind=kind), ranges(source))
    assert record.dtype == kind
    assert check_operators(target) == []
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    made = {name: node for node in model.graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    eight = onnx.TensorProto.INT8 if kind == "int8" else onnx.TensorProto.FLOAT8E4M3FN
    products = {node.name: node for node in model.graph.node if node.op_type == "MatMul"}
    for name in ("make_left", "make_right", "make_y"):
        activation, weight = (made[value] for value in products[name].input)
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert made[activation.input[0]].op_type == "QuantizeLinear"
        assert types[weight.input[0]] == eight
    # Attention's own products, and every output, stay float.
    for name in ("make_scores", "make_mixed"):
        assert all(made[value].op_type != "DequantizeLinear" for value in products[name].input)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 2  # left and right share theirs
    zeros = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name.endswith("_zero")]
    assert zeros
    assert all(not np.asarray(zero, np.float32).any() for zero in zeros)
    fidelity = Comparator(source, planted.feeds(3, 2, seed=5)).fidelity(target)
    assert fidelity.cosine > (0.9995 if kind == "int8" else 0.998)


def test_onnx_runtime_and_openvino_agree(tmp_path: Path) -> None:
    if not (installed("openvino") and installed("onnxruntime")):
        pytest.skip("OpenVINO and ONNX Runtime are not both installed")
    source, target = network(tmp_path / "float.onnx"), tmp_path / "low.onnx"
    write_quantised(source, target, Scheme(), ranges(source))
    feed = planted.feeds(3, 1, seed=5)[0]
    one, other = (Engine(target, choose(name, "cpu", "int8")).run(feed)["y"] for name in ("onnxruntime", "openvino"))
    # OpenVINO computes what is not int8 in bfloat16 where the CPU can: eight bits each.
    assert np.linalg.norm(one - other) / np.linalg.norm(one) < 0.02


def test_smoothing_tames_an_outlier_channel(tmp_path: Path) -> None:
    source, target = network(tmp_path / "float.onnx", outlier=300.0), tmp_path / "low.onnx"
    seen, comparator = ranges(source), Comparator(source, planted.feeds(3, 2, seed=5))
    write_quantised(source, target, Scheme(), seen)
    plain = comparator.fidelity(target)
    write_quantised(source, target, Scheme(smooth=0.5), seen)
    smooth = comparator.fidelity(target)
    assert smooth.loss < plain.loss / 10
    model = load_graph(source)
    assert {target_.activation for target_ in linear_nodes(model)} == {"normal", "mixed"}


def test_smoothing_leaves_the_product_as_it_is() -> None:
    generator = np.random.default_rng(0)
    activation, weight = generator.normal(size=(5, 8)), generator.normal(size=(8, 3))
    activation[:, 2] *= 1000
    channels = np.abs(activation).max(0).astype(np.float32)
    channels[7] = 0
    factors = smoothing_factors(channels, [weight], 0.5)
    assert factors[7] == 1
    assert np.allclose((activation / factors) @ (weight * factors[:, None]), activation @ weight)
    assert np.abs(activation / factors).max() < np.abs(activation).max() / 10


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.5 / 127), ("fp8", 0.5 / 8)])
def test_weights_have_a_scale_per_output_channel(kind: str, error: float) -> None:
    array = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32) * np.array([1e-3, 1, 50, 0], np.float32)
    scales = weight_scales(array, 1, kind)
    back = quantised_weights(array, scales, 1, kind).astype(np.float32) * scales
    largest = np.abs(array).max(0)
    assert (np.abs(back - array).max(0) <= error * largest * 1.001 + 1e-12).all()


def test_e4m3_ends_at_448() -> None:
    assert to_fp8(np.array([1e9, -1e9, 448, 0.3])).astype(np.float32).tolist() == [448, -448, 448, 0.3125]


def test_a_quantised_graph_is_refused(tmp_path: Path) -> None:
    source, target = network(tmp_path / "float.onnx"), tmp_path / "low.onnx"
    write_quantised(source, target, Scheme(), ranges(source))
    with pytest.raises(CalibrationError, match="quantised already") as caught:
        load_graph(target)
    assert "\n" not in str(caught.value)


def test_nothing_to_quantise_is_told(tmp_path: Path) -> None:
    source = network(tmp_path / "float.onnx")
    every = tuple(target.layer for target in linear_nodes(load_graph(source)))
    with pytest.raises(CalibrationError, match="nothing to do"):
        write_quantised(source, tmp_path / "low.onnx", Scheme(high=every), ranges(source))


def test_layers_keep_the_names_of_the_model() -> None:
    found = linear_nodes(load_graph(demo_folder() / "proposal.onnx"))
    layers = {target.layer for target in found}
    assert "backbone.res4.0.conv2" in layers
    assert "sem_seg_head.predictor.transformer.decoder.layers.1.linear1" in layers
    assert {"backbone.res4.0", "sem_seg_head.predictor.transformer.decoder.layers.1"} <= {one.block for one in found}
    assert block_of("blocks.3.mlp.c_fc") == "blocks.3"
    high = ends(load_graph(demo_folder() / "proposal.onnx"))
    assert "backbone.stem.conv1" in high
    assert "sem_seg_head.predictor.class_embed.layers.1" in high
    assert "backbone.res4.0.conv2" not in high
