"""The parser's published list against our graphs, and against graphs that it does not take."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.doubles.tensorrt_cases import half_bundle
from tests.export.graph.small_graphs import export_image, export_text, taken_in_both_precisions
from vocabseg.export.tensorrt.operators import TYPES, check_operators, parser_list

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


def one(tmp_path, operator, inputs=("x",), outputs=("y",), more=(), **attributes):
    settings = {key: attributes.pop(key) for key in ("constants", "opset") if key in attributes}
    given = attributes.pop("given", (X,))
    node = helper.make_node(operator, inputs, outputs, name="the_node", **attributes)
    return check_operators(graph(tmp_path, [node, *more], given, **settings))


def test_the_list_is_whole():
    known = parser_list()
    assert (known.tensorrt, known.opsets.start, known.opsets.stop - 1) == ("11.2", 9, 24)
    assert (len(known.types), len(known.unsupported)) == (160, 41)
    assert not known.types.keys() & known.unsupported
    assert set().union(*known.types.values()) <= set(TYPES.values())
    assert known.since.keys() <= known.types.keys()
    onnx_operators = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    old = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # were in ONNX before opset 9
    assert known.types.keys() - old <= onnx_operators
    assert known.unsupported <= onnx_operators


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


def test_an_unsupported_operator_is_named_with_its_node(tmp_path):
    assert one(tmp_path, "Det") == ["g.onnx: node 'the_node': Det is not supported by TensorRT's parser (11.2)"]
    assert one(tmp_path, "NewThing") == ["g.onnx: node 'the_node': NewThing is unknown to TensorRT's parser (11.2)"]
    (problem,) = one(tmp_path, "FastGelu", domain="com.microsoft")
    assert "domain com.microsoft" in problem


def test_operators_inside_branches_are_looked_at(tmp_path):
    inner = helper.make_graph([helper.make_node("Det", ["x"], ["z"], name="inside")], "b", [], [
        helper.make_tensor_value_info("z", FLOAT, None)
    ])  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    path = graph(tmp_path, [node], (("x", FLOAT, [2, 2]), ("c", TensorProto.BOOL, [])))
    assert [line for line in check_operators(path) if "'inside'" in line]


@pytest.mark.parametrize(("opset", "fine"), [(8, False), (9, True), (21, True), (24, True), (25, False)])
def test_opsets(tmp_path, opset, fine):
    problems = one(tmp_path, "Relu", opset=opset)
    assert problems == [] if fine else [f"opset {opset} is none" in problem for problem in problems] == [True]


def test_an_operator_that_came_later_is_refused_by_an_older_tensorrt(tmp_path):
    given = tuple((name, HALF, [1, 2, 4, 8]) for name in "qkv")
    node = helper.make_node("Attention", list("qkv"), ["y"])
    path = graph(tmp_path, [node], given, [("y", HALF, None)], opset=23)
    assert check_operators(path) == check_operators(path, "10.14.1") == []
    assert ["needs TensorRT 10.14" in line for line in check_operators(path, "10.13.3.9")] == [True]


@pytest.mark.parametrize(
    ("operator", "inputs", "given", "outputs", "text"),
    [
        ("Sin", ["x"], [("x", TensorProto.DOUBLE, [2])], TensorProto.DOUBLE, "Sin on DOUBLE"),
        ("Add", ["x", "x"], [("x", UINT8, [2])], UINT8, "Add on UINT8"),
        ("MatMul", ["x", "x"], [("x", INT32, [2, 2])], INT32, "MatMul on INT32"),
        ("Cast", ["x"], [("x", FLOAT, [2])], TensorProto.DOUBLE, "Cast on DOUBLE"),
        ("Relu", ["x"], [("x", INT8, [2])], INT8, "which only DequantizeLinear may"),
        ("MatMulInteger", ["x", "x"], [("x", INT8, [2, 2])], INT32, "MatMulInteger is not supported"),
        ("Where", ["c", "x", "x"], [("c", TensorProto.BOOL, [2]), ("x", FLOAT, [2])], FLOAT, None),
        ("Gather", ["x", "i"], [("x", HALF, [2]), ("i", INT64, [1])], HALF, None),
        ("Equal", ["x", "x"], [("x", INT64, [2])], TensorProto.BOOL, None),
        ("Shape", ["x"], [("x", HALF, [2])], INT64, None),
    ],
)
def test_types(tmp_path, operator, inputs, given, outputs, text):
    attributes = {"to": outputs} if operator == "Cast" else {}
    node = helper.make_node(operator, inputs, ["y"], **attributes)
    problems = check_operators(graph(tmp_path, [node], given, [("y", outputs, None)]))
    assert problems == [] if text is None else text in " ".join(problems)


SIZES = {"sizes": np.array([1, 3, 4, 4])}


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"mode": "linear"}, None),
        ({"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}, None),
        ({"mode": "cubic"}, "mode=cubic is not supported"),
        ({"mode": "linear", "antialias": 1}, "antialias=1 is not supported"),
        ({"mode": "linear", "keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy=not_larger"),
        ({"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize"),
    ],
)
def test_resize(tmp_path, attributes, text):
    problems = one(tmp_path, "Resize", ["x", "", "", "sizes"], constants=SIZES, **attributes)
    assert [text in line for line in problems] == ([] if text is None else [True])


def test_resize_by_scales_of_some_axes(tmp_path):
    scales = {"scales": np.array([2, 2], np.float32)}
    problems = one(tmp_path, "Resize", ["x", "", "scales"], constants=scales, mode="linear", axes=[2, 3])
    assert ["axes [2, 3]" in line for line in problems] == [True]


@pytest.mark.parametrize(
    ("operator", "zero", "text"),
    [
        ("QuantizeLinear", np.int8(0), None),
        ("QuantizeLinear", np.int8(3), "zero point must be 0 (quantise symmetrically), it reaches 3"),
        ("QuantizeLinear", np.uint8(0), "quantises to UINT8"),
        ("QuantizeLinear", np.array([0, 0, 5], np.int8), "it reaches 5"),
    ],
)
def test_quantisation_is_symmetric(tmp_path, operator, zero, text):
    constants = {"scale": np.full(zero.shape, 0.1, np.float32), "zero": zero}
    node = helper.make_node(operator, ["x", "scale", "zero"], ["q"], axis=1)
    back = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=1)
    path = graph(tmp_path, [node, back], [("x", FLOAT, [1, 3, 8, 8])], [("y", FLOAT, None)], constants)
    problems = check_operators(path)
    assert problems == [] if text is None else text in problems[0]


def test_quantised_weights_of_biases_are_refused(tmp_path):
    constants = {"w": np.ones(3, np.int32), "scale": np.float32(0.1)}
    node = helper.make_node("DequantizeLinear", ["w", "scale"], ["y"])
    problems = check_operators(graph(tmp_path, [node], [], constants=constants))
    assert ["DequantizeLinear on INT32" in line for line in problems] == [True]


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "attributes", "constants", "text"),
    [
        ("MaxPool", ["x"], ["y", "i"], {"kernel_shape": [2, 2]}, {}, "output Indices"),
        ("MaxPool", ["x"], ["y"], {"kernel_shape": [2, 2], "dilations": [2, 2]}, {}, "dilations [2, 2]"),
        ("MaxPool", ["x"], ["y"], {"kernel_shape": [2, 2], "dilations": [1, 1]}, {}, None),
        ("LayerNormalization", ["x", "s"], ["y", "mean"], {}, {"s": np.ones(8, np.float32)}, "only its first output"),
        ("LayerNormalization", ["x", "s"], ["y"], {}, {"s": np.ones(8, np.float32)}, None),
        ("ReduceMean", ["x", "n"], ["y"], {}, {}, "its input axes must be known"),
        ("ReduceMean", ["x", "axes"], ["y"], {}, {"axes": np.array([1])}, None),
        ("ReduceMean", ["x"], ["y"], {}, {}, None),
        ("Unsqueeze", ["x", "n"], ["y"], {}, {}, "its input axes"),
        ("CumSum", ["x", "n"], ["y"], {}, {}, "its input axis"),
        ("TopK", ["x", "k"], ["y", "i"], {}, {"k": np.array([3840])}, "K=3840 must be below 3840"),
        ("TopK", ["x", "k"], ["y", "i"], {"sorted": 0}, {"k": np.array([3])}, "sorted=0"),
        ("TopK", ["x", "k"], ["y", "i"], {}, {"k": np.array([3])}, None),
        ("ScatterND", ["x", "i", "x"], ["y"], {"reduction": "add"}, {"i": np.array([[0]])}, "reduction=add"),
        ("GridSample", ["x", "g"], ["y"], {}, {"g": np.zeros((1, 2, 2, 2), np.float32)}, None),
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
        (3, "qkv", {"q_num_heads": 2, "kv_num_heads": 2}, "Q has 3 dimensions"),
        (4, ["q", "k", "v", "", "p", "w"], {}, "past_key is not supported"),
        (4, "qkv", {"softcap": 2.0}, "softcap=2.0 is not supported"),
    ],
)
def test_attention(tmp_path, rank, inputs, attributes, text):
    given = tuple((name, HALF, [1, 2, 4, 8][-rank:]) for name in "qkvpw")
    problems = one(tmp_path, "Attention", list(inputs), given=given, opset=23, **attributes)
    assert problems == [] if text is None else text in problems[0]
