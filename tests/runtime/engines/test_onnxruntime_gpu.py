"""The genuine ONNX Runtime for GPUs over the fake driver, in its own process: what it opens, captures, computes.

Its matrix products are those of a stand-in of cuBLAS; its own kernels are machine code and compute nothing here.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.fake_driver.build import MissingError, environment
from tests.fake_driver.machine import skip
from tests.golden import REPOSITORY

SOURCE = """
import sys
from pathlib import Path

import numpy as np

from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.cuda.device import open_device
from vocabseg.runtime.engines.onnxruntime_cuda import open_session
from vocabseg.runtime.engines.onnxruntime_session import BoundSession

device = open_device(0)
stream = device.stream()
bundle = open_bundle(demo_folder())
for name in bundle.manifest.graphs:
    print("opened", name, *open_session(bundle.graph_path(name), 0, stream.handle, True).get_providers())

session = BoundSession(open_session(Path(sys.argv[1]), 0, stream.handle, True), "cuda", 0, cuda_graphs=True)
weights = [np.load(path) for path in sys.argv[2:]]
x, y = device.empty((6, 3), np.float32), device.empty((6, 5), np.float32)
for seed in range(6):
    given = np.random.default_rng(seed).normal(size=(6, 3)).astype(np.float32)
    stream.upload(x, given)
    session.run({"x": x}, {"y": y})
    np.testing.assert_allclose(y.to_host(stream), given @ weights[0] @ weights[1], atol=1e-5)
print("captured", len(session._graph_ids), "failed", session._failed_captures)
"""


def test_graphs_open_and_products_are_captured_and_computed(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    try:
        settings = environment(onnxruntime=True)
    except MissingError as error:
        skip(error)
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=size).astype(np.float32) for name, size in (("a", (3, 4)), ("b", (4, 5)))}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 3), ("y", 5))]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], tensors)
    path = tmp_path / "products.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    for name, array in weights.items():
        np.save(tmp_path / f"{name}.npy", array)
    run = subprocess.run(
        [sys.executable, "-c", SOURCE, str(path), *(str(tmp_path / f"{name}.npy") for name in weights)],
        env={**os.environ, **settings}, capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert [line.split()[:3] for line in lines[:-1]] == [
        ["opened", name, "CUDAExecutionProvider"] for name in ("proposal", "image_encoder", "text_encoder")
    ]
    assert lines[-1] == "captured 1 failed 0"
    assert "[fake driver]" not in run.stderr
