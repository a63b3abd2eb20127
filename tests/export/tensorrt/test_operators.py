"""The list of what TensorRT's parser takes against our graphs, and against graphs that it does not take."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.doubles.tensorrt_cases import half_bundle
from tests.export.graph.small_graphs import export_image, export_text, taken_in_both_precisions
from vocabseg.export.tensorrt.operators import OPERATORS, OPSETS, SINCE, check_operators

FLOAT, HALF, INT8, UINT8, INT32, INT64 = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64
)  # fmt: skip


X, Y = ("x", FLOAT, [1, 3, 8, 8]), ("y", FLOAT, None)


def graph(tmp_path, nodes, inputs=(X,), outputs=(Y,), constants=None, opset=21):
    """An ONNX file of these nodes."""
    initializers = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            initializers,
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
    )
    path = tmp_path / "g.onnx"
    onnx.save(model, path)
    return path


def one(tmp_path, operator, inputs=("x",), outputs=("y",), **attributes):
    settings = {key: attributes.pop(key) for key in ("constants", "opset") if key in attributes}
    given = attributes.pop("given", (X,))
    node = helper.make_node(operator, inputs, outputs, name="the_node", **attributes)
    return check_operators(graph(tmp_path, [node], given, **settings))


def test_the_list_holds_operators_of_onnx():
    assert {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""} >= OPERATORS >= SINCE.keys()
    assert (OPSETS[0], OPSETS[-1]) == (9, 24)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_graphs_of_the_demo_model_are_taken(tmp_path, precision):
    bundle = half_bundle(tmp_path / "demo")
    assert bundle.manifest.graphs_in(precision)
    for name in bundle.manifest.graphs_in(precision):
        for version in (None, "10.13.3.9"):
            assert check_operators(bundle.graph_path(name, precision), version) == []


@pytest.mark.parametrize(
    ("export", "sizes"),
    [
        (export_image, {"patch": 16, "fused": True}),
        (export_image, {"patch": None}),
        (export_text, {}),
    ],
    ids=["vit-fused", "resnet", "text"],
)
def test_graphs_of_both_kinds_of_encoders_are_taken_in_both_precisions(tmp_path, export, sizes):
    path, _, _ = export(tmp_path, **sizes)
    oldest = "10.14.1" if sizes.get("fused") else "10.13.3.9"  # the first with Attention
    taken_in_both_precisions(path, tmp_path / "half.onnx", oldest)


def test_an_unknown_operator_is_named_with_its_node(tmp_path):
    (problem,) = one(tmp_path, "Det")
    assert problem.startswith("g.onnx: node 'the_node': Det is not on the list")
    (problem,) = one(tmp_path, "FastGelu", domain="com.microsoft")
    assert "domain com.microsoft" in problem


def test_branches_are_refused(tmp_path):
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [
        helper.make_tensor_value_info("z", FLOAT, None)
    ])  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    path = graph(tmp_path, [node], (("x", FLOAT, [2, 2]), ("c", TensorProto.BOOL, [])))
    assert ["If is not on the list" in line for line in check_operators(path)] == [True]


@pytest.mark.parametrize(("opset", "fine"), [(8, False), (9, True), (21, True), (24, True), (25, False)])
def test_opsets(tmp_path, opset, fine):
    problems = one(tmp_path, "Relu", opset=opset)
    assert problems == [] if fine else [f"opset {opset} is not" in problem for problem in problems] == [True]


def test_an_operator_that_came_later_is_refused_by_an_older_tensorrt(tmp_path):
    given = tuple((name, HALF, [1, 2, 4, 8]) for name in "qkv")
    node = helper.make_node("Attention", list("qkv"), ["y"])
    path = graph(tmp_path, [node], given, [("y", HALF, None)], opset=23)
    assert check_operators(path) == check_operators(path, "10.14.1") == []
    assert ["needs TensorRT 10.14" in line for line in check_operators(path, "10.13.3.9")] == [True]


@pytest.mark.parametrize(
    ("operator", "given", "output", "text"),
    [
        ("Sin", TensorProto.DOUBLE, TensorProto.DOUBLE, "'x' is DOUBLE"),
        ("Cast", FLOAT, TensorProto.DOUBLE, "Cast is not supported to DOUBLE"),
        ("Cast", FLOAT, HALF, None),
        ("MatMulInteger", INT8, INT32, "MatMulInteger is not on the list"),
        ("Shape", HALF, INT64, None),
    ],
)
def test_types(tmp_path, operator, given, output, text):
    attributes = {"to": output} if operator == "Cast" else {}
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    problems = check_operators(graph(tmp_path, [node], [("x", given, [2])], [("y", output, None)]))
    assert problems == [] if text is None else text in " ".join(problems)


SIZES = {"sizes": np.array([1, 3, 4, 4])}


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"mode": "linear"}, None),
        ({"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}, None),
        ({"mode": "cubic"}, "mode=cubic"),
        ({"mode": "linear", "antialias": 1}, "antialias=1"),
        ({"mode": "linear", "keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy=not_larger"),
        ({"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize"),
    ],
)
def test_resize(tmp_path, attributes, text):
    problems = one(tmp_path, "Resize", ["x", "", "", "sizes"], constants=SIZES, **attributes)
    assert [text in line for line in problems] == ([] if text is None else [True])


@pytest.mark.parametrize(
    ("zero", "text"),
    [
        (np.int8(0), None),
        (np.int8(3), "needs a zero point of 0"),
        (np.array([0, 0, 5], np.int8), "needs a zero point of 0"),
        (np.uint8(0), "is not supported with UINT8"),
    ],
)
def test_quantisation_is_symmetric(tmp_path, zero, text):
    constants = {"scale": np.full(zero.shape, 0.1, np.float32), "zero": zero}
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=1)
    back = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=1)
    problems = check_operators(graph(tmp_path, [node, back], [X], [Y], constants))
    assert [text in line for line in problems] == ([] if text is None else [True, True])


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "attributes", "constants", "text"),
    [
        ("MaxPool", ["x"], ["y", "i"], {"kernel_shape": [2, 2]}, {}, "with its first output alone"),
        ("MaxPool", ["x"], ["y"], {"kernel_shape": [2, 2], "dilations": [2, 2]}, {}, "dilations=[2, 2]"),
        ("MaxPool", ["x"], ["y"], {"kernel_shape": [2, 2], "dilations": [1, 1]}, {}, None),
        ("LayerNormalization", ["x", "s"], ["y", "mean"], {}, {"s": np.ones(8, np.float32)}, "first output alone"),
        ("LayerNormalization", ["x", "s"], ["y"], {}, {"s": np.ones(8, np.float32)}, None),
        ("ReduceMean", ["x", "n"], ["y"], {}, {}, "needs a constant as input 2, 'n' is computed"),
        ("ReduceMean", ["x", "axes"], ["y"], {}, {"axes": np.array([1])}, None),
        ("ReduceMean", ["x"], ["y"], {}, {}, None),
        ("Unsqueeze", ["x", "n"], ["y"], {}, {}, "needs a constant as input 2"),
        ("CumSum", ["x", "n"], ["y"], {}, {}, "needs a constant as input 2"),
    ],
)  # fmt: skip
def test_restrictions(tmp_path, operator, inputs, outputs, attributes, constants, text):
    given = (("x", FLOAT, [1, 3, 8, 8]), ("n", INT64, [1]))
    problems = one(tmp_path, operator, inputs, outputs, given=given, constants=constants, **attributes)
    assert [text in line for line in problems] == ([] if text is None else [True])


@pytest.mark.parametrize(
    ("rank", "inputs", "attributes", "text"),
    [
        (4, "qkv", {}, None),
        (3, "qkv", {"q_num_heads": 2, "kv_num_heads": 2}, "q_num_heads=2"),
        (4, ["q", "k", "v", "", "p", "w"], {}, "with more inputs"),
        (4, "qkv", {"softcap": 2.0}, "softcap=2.0"),
    ],
)
def test_attention(tmp_path, rank, inputs, attributes, text):
    given = tuple((name, HALF, [1, 2, 4, 8][-rank:]) for name in "qkvpw")
    problems = one(tmp_path, "Attention", list(inputs), given=given, opset=23, **attributes)
    assert [text in line for line in problems] == ([] if text is None else [True])
