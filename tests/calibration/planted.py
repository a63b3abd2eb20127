"""Graphs in which a plain conversion to eight or sixteen bits goes wrong, each in one known place."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 32


def save(path: Path, nodes: list, weights: dict[str, np.ndarray], rank: int = 2) -> Path:
    """Write a graph from "x" (batch, ..., WIDTH) to "y"; nodes are (operation, inputs, output, attributes)."""
    made = [
        helper.make_node(operation, inputs, [output], name=f"make_{output}", **attributes)
        for operation, inputs, output, attributes in nodes
    ]
    shape = ["batch", *[WIDTH] * (rank - 1)]
    graph = helper.make_graph(
        made,
        "planted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def weights(seed: int, gain: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (gain * generator.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)


def large_activation(path: Path) -> Path:
    """Between two products the values reach some 1e5, more than FP16's 65504."""
    nodes = [
        ("MatMul", ["x", "w1"], "hidden", {}),
        ("Mul", ["hidden", "up"], "large", {}),
        ("Mul", ["large", "down"], "small", {}),
        ("Relu", ["small"], "active", {}),
        ("MatMul", ["active", "w2"], "y", {}),
    ]
    return save(path, nodes, {"w1": weights(1), "w2": weights(2), "up": scalar(4e4), "down": scalar(2.5e-5)})


def layer_norm(path: Path, gain: float, epsilon: float = 1e-12) -> Path:
    """A layer norm in single operations, behind a product that gives values of the size of `gain`."""
    nodes = [
        ("MatMul", ["x", "w1"], "hidden", {}),
        ("ReduceMean", ["hidden", "axes"], "mean", {"keepdims": 1}),
        ("Sub", ["hidden", "mean"], "centred", {}),
        ("Mul", ["centred", "centred"], "squares", {}),
        ("ReduceMean", ["squares", "axes"], "variance", {"keepdims": 1}),
        ("Add", ["variance", "epsilon"], "positive", {}),
        ("Sqrt", ["positive"], "deviation", {}),
        ("Div", ["centred", "deviation"], "normal", {}),
        ("MatMul", ["normal", "w2"], "y", {}),
    ]
    constants = {"w1": weights(1, gain), "w2": weights(2), "axes": np.array([-1], np.int64)}
    return save(path, nodes, constants | {"epsilon": scalar(epsilon)})


def tiny_scores(path: Path) -> Path:
    """Attention whose scores are of the size of 1e-8 before two factors bring them back."""
    nodes = [
        ("MatMul", ["x", "wq"], "query", {}),
        ("MatMul", ["x", "wk"], "key", {}),
        ("Transpose", ["key"], "turned", {"perm": [0, 2, 1]}),
        ("MatMul", ["query", "turned"], "products", {}),
        ("Mul", ["products", "down"], "scores", {}),
        ("Mul", ["scores", "up"], "raised", {}),
        ("Mul", ["raised", "more"], "logits", {}),
        ("Softmax", ["logits"], "attention", {"axis": -1}),
        ("MatMul", ["x", "wv"], "value", {}),
        ("MatMul", ["attention", "value"], "y", {}),
    ]
    constants = {"wq": weights(1, 2e-3), "wk": weights(2, 2e-3), "wv": weights(3)}
    factors = {"down": scalar(1e-3), "up": scalar(6e4), "more": scalar(2e3)}
    return save(path, nodes, constants | factors, rank=3)


def feeds(rank: int, count: int = 3, seed: int = 0, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    shape = (4, *[WIDTH] * (rank - 1))
    return [{"x": (scale * generator.standard_normal(shape)).astype(np.float32)} for _ in range(count)]
