"""The engine "torch": every operator against ONNX Runtime on the CPU, whole graphs, and the pipeline through it."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from tests.cuda_emulation import stand_ins
from tests.fake_driver.machine import installed
from tests.golden import REPOSITORY
from vocabseg.benchmarks.gpu.torch_graph import TorchGraph, torch_segmenter
from vocabseg.benchmarks.gpu.torch_operators import OPERATORS
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.segmenter import cuda_stages
from vocabseg.runtime.segmenter.segmenter import Segmenter

R = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return R.normal(size=shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X, IMAGE = floats(2, 3, 8), floats(2, 4, 9, 7)
POOL = {"kernel_shape": [3, 3], "strides": [2, 2]}
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
# Operator, inputs (constants where they are integers), attributes.
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((kind, [X, floats(3, 8)], {}) for kind in ("Add", "Sub", "Mul", "Div")),
    ("Div", [whole(-7, 7, 9), whole(2, -2, 4)], {}),
    *((kind, [X], {}) for kind in ("Cos", "Sin", "Relu", "Sigmoid", "Erf", "Gelu")),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Sqrt", [np.abs(X)], {}),
    ("AveragePool", [floats(1, 2, 6, 8)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Cast", [X * 9], {"to": TensorProto.INT64}),
    ("Cast", [X], {"to": TensorProto.FLOAT16}),
    ("Concat", [X, floats(2, 1, 8)], {"axis": 1}),
    ("Conv", [IMAGE, floats(6, 2, 3, 3), floats(6)], {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}),
    ("Conv", [IMAGE, floats(5, 4, 3, 3)], {"pads": [0, 1, 2, 1], "dilations": [2, 1]}),
    ("CumSum", [X, np.array(1, np.int64)], {}),
    ("Einsum", [X, floats(2, 8, 5)], {"equation": "bqc,bcn->bqn"}),
    ("Equal", [whole(1, 2, 3), whole(1, 0, 3)], {}),
    ("Expand", [floats(3, 1), whole(2, 1, 8)], {}),
    ("Gather", [X, np.array([[1, -1], [0, 2]], np.int64)], {"axis": 1}),
    ("GroupNormalization", [IMAGE, floats(4), floats(4)], {"num_groups": 2, "epsilon": 1e-3}),
    ("LayerNormalization", [X, floats(8), floats(8)], {"axis": -1, "epsilon": 1e-3}),
    ("MatMul", [X, floats(2, 8, 5)], {}),
    ("MaxPool", [IMAGE], {**POOL, "pads": [1, 1, 1, 1]}),
    ("MaxPool", [IMAGE - 9], {**POOL, "pads": [0, 1, 2, 0], "ceil_mode": 1}),
    ("Pad", [X, whole(0, 1, 2, 1, 0, 3), np.array(0.5, np.float32)], {}),
    ("Pad", [X, whole(1, 2), None, whole(-1)], {}),
    ("Range", [np.array(2, np.int64), np.array(9, np.int64), np.array(3, np.int64)], {}),
    ("ReduceMax", [X, whole(1)], {"keepdims": 0}),
    ("ReduceMean", [X, whole(-1, 0)], {}),
    ("ReduceMean", [X], {}),
    ("Reshape", [X, whole(0, -1)], {}),
    ("Reshape", [np.zeros((0, 3), np.float32), whole(3, 0)], {"allowzero": 1}),
    ("Resize", [IMAGE, None, np.array([1, 1, 2, 3], np.float32)], NEAREST),
    ("Resize", [IMAGE, None, None, whole(2, 4, 13, 5)], NEAREST),
    ("Resize", [IMAGE, None, None, whole(2, 4, 13, 5)], {"mode": "linear"}),
    ("Shape", [X], {"start": 1, "end": 3}),
    ("Slice", [X, whole(1, -3), whole(9, 2**40), whole(1, 2), whole(1, 2)], {}),
    ("Softmax", [X], {"axis": 1}),
    ("Split", [X], {"num_outputs": 3, "axis": 2}),
    ("Split", [X, whole(1, 2)], {"axis": 1}),
    ("Squeeze", [floats(1, 3, 1), whole(0)], {}),
    ("Squeeze", [floats(1, 3, 1)], {}),
    ("Transpose", [X], {"perm": [2, 0, 1]}),
    ("Unsqueeze", [X, whole(0, -1)], {}),
    ("Where", [X > 0, X, floats(2, 1, 8)], {}),
]


def test_every_operator_is_among_the_cases() -> None:
    assert {kind for kind, _, _ in CASES} == OPERATORS.keys()


@pytest.mark.parametrize(("kind", "inputs", "attributes"), CASES, ids=[f"{k}-{c[0]}" for k, c in enumerate(CASES)])
def test_operators_are_those_of_onnx_runtime(kind: str, inputs: list[Any], attributes: dict, tmp_path: Any) -> None:
    names = ["" if x is None else f"x{k}" for k, x in enumerate(inputs)]
    count = 1 if kind != "Split" else attributes.get("num_outputs", len(inputs[-1]))
    outputs = [f"y{k}" for k in range(count)]
    constant = [bool(k and x is not None and x.dtype == np.int64) for k, x in enumerate(inputs)]
    held = [onnx.numpy_helper.from_array(x, n) for x, n, c in zip(inputs, names, constant, strict=True) if c]
    given = {n: x for x, n, c in zip(inputs, names, constant, strict=True) if n and not c}
    entry = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), None) for n, x in given.items()]
    graph = helper.make_graph([helper.make_node(kind, names, outputs, **attributes)], "g", entry, [], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {info.name: info.type.tensor_type.elem_type for info in inferred.graph.value_info}
    for name in outputs:
        kind_of = known.get(name) or entry[0].type.tensor_type.elem_type
        model.graph.output.append(helper.make_tensor_value_info(name, kind_of, None))
    onnx.save(model, tmp_path / "one.onnx")
    wanted = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, given
    )
    found = TorchGraph(tmp_path / "one.onnx", "cpu").compute({n: torch.from_numpy(x) for n, x in given.items()})
    for name, value in zip(outputs, wanted, strict=True):
        assert found[name].numpy().dtype == value.dtype
        np.testing.assert_allclose(found[name].numpy(), value, rtol=2e-5, atol=2e-6, err_msg=name)


def test_an_operator_that_is_not_known_is_named(tmp_path: Any) -> None:
    graph = helper.make_graph([helper.make_node("Tan", ["x"], ["y"])], "g", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "tan.onnx")
    with pytest.raises(EngineError, match=r"tan\.onnx: the engine torch has no Tan: use another engine"):
        TorchGraph(tmp_path / "tan.onnx", "cpu")


def test_labels_through_torch_are_those_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an emulated GPU whose memory is the host's; the second image is of another size."""
    scene = load_image(REPOSITORY / "examples" / "scene.png")
    bundle, names = open_bundle(demo_folder()), ["dog", "grass", "house", "water"]
    host = Segmenter(bundle, "cpu", "onnxruntime", "float32")
    monkeypatch.setattr(cuda_stages, "CudaKernels", stand_ins.HostKernels)
    with installed():
        segmenter = torch_segmenter(bundle, "float32", on_host=True)
        assert segmenter.choice.key == "torch-cuda:0-float32"
        for image in (scene, scene[40:170, 20:]):
            found, wanted = segmenter(image, names), host(image, names)
            assert (found.labels == wanted.labels).mean() > 0.9999
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
