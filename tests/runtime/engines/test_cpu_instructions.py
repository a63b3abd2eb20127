"""CPUs without VNNI or bfloat16: right values or a refusal, on every engine.

oneDNN, which multiplies for OpenVINO, is told which instructions to do without; valgrind emulates a CPU that has none
beyond AVX2, for OpenVINO and ONNX Runtime as a whole.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vocabseg.runtime.engines.host_engines import open_engine
from vocabseg.runtime.engines.openvino import products_saturate

DEPTH = 64
X86 = platform.machine() in ("x86_64", "AMD64")

RUN = f"""
import sys, warnings
import numpy as np
from vocabseg.runtime.engines.host_engines import open_engine
x = np.ones((16, {DEPTH}), np.float32)
for engine in ("openvino", "onnxruntime"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = open_engine(sys.argv[1], engine, "cpu", "int8").run({{"x": x}})["y"]
    print(engine, y.min(), y.max(), [str(one.message) for one in caught if one.category is RuntimeWarning])
try:
    open_engine(sys.argv[1], "openvino", "cpu", "bfloat16").run({{"x": x}})
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def saturating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = x w of 64 products of the largest INT8 values: their pairs do not fit in 16 bits."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weights", "scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["rounded", "w"], ["y"]),
    ]
    constants = {
        "weights": np.full((DEPTH, 8), 127, np.int8), "scale": np.float32(1 / 127), "zero": np.int8(0),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "saturating",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path_factory.mktemp("saturating") / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def has_vnni() -> bool:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & flags)


@pytest.mark.skipif(not X86 or sys.platform != "linux", reason="only x86 saturates, and only Linux lists instructions")
def test_the_cpu_at_hand_is_known():
    assert products_saturate() is not has_vnni()


@pytest.mark.skipif(not X86, reason="only x86 saturates")
def test_a_cpu_without_vnni_is_recognised():
    code = "from vocabseg.runtime.engines.openvino import products_saturate; print(products_saturate())"
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True
    )
    assert found.stdout.strip() == "True", found.stderr


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_int8_products_are_right_here(saturating, engine):
    found = open_engine(saturating, engine, "cpu", "int8").run({"x": np.ones((16, DEPTH), np.float32)})["y"]
    np.testing.assert_allclose(found, DEPTH, rtol=1e-5)


@pytest.mark.skipif(not X86 or not shutil.which("valgrind"), reason="needs valgrind, which emulates a plain x86 CPU")
def test_int8_products_are_right_without_vnni_and_bfloat16_is_refused(saturating):
    found = subprocess.run(
        ["valgrind", "--tool=none", "-q", sys.executable, "-c", RUN, str(saturating)], capture_output=True, text=True
    )
    openvino, onnxruntime, bfloat16 = found.stdout.splitlines()
    assert openvino.startswith("openvino 64.0 64.0 ["), found.stdout + found.stderr
    assert "this CPU has no VNNI" in openvino
    assert onnxruntime == "onnxruntime 64.0 64.0 []", found.stdout + found.stderr
    assert bfloat16.startswith("EngineError this CPU has no bfloat16"), found.stdout + found.stderr
