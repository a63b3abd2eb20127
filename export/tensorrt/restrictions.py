"""Attributes and inputs that TensorRT's ONNX parser restricts, one check per operator.

Facts out of the restrictions column of the page that `tensorrt_operators.toml` names. Not checked, since no graph of
ours comes near them: recurrent layers, Loop, STFT, DFT, DeformConv, RotaryEmbedding, TensorScatter.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

RESIZE_MODES = ("nearest", "linear")
RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
RESIZE_NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
TOP_K_LIMIT = 3840  # K must be below it
QUANTISED_OUTPUTS = ("INT8", "FLOAT8E4M3FN", "FLOAT4E2M1", "INT4")


class Node:
    """One node as a check sees it: its attributes, and what is known of its inputs."""

    def __init__(
        self,
        node: Any,
        attributes: Mapping[str, Any],
        types: Mapping[str, str],
        ranks: Mapping[str, int],
        constants: Mapping[str, Any],
    ):
        self.operator: str = node.op_type
        self.domain: str = node.domain
        self.inputs: list[str] = list(node.input)
        self.outputs: list[str] = list(node.output)
        self.attributes = attributes
        self.label = f"node {node.name or (node.output[0] if node.output else '')!r}"
        self._types, self._ranks, self._constants = types, ranks, constants

    def element_type(self, value: str) -> str | None:
        """ONNX's name of a value's type, such as "FLOAT16"; None where it is not known."""
        return self._types.get(value)

    def rank(self, value: str) -> int | None:
        """How many dimensions a value has; None where that is not known."""
        return self._ranks.get(value)

    def has_input(self, index: int) -> bool:
        return index < len(self.inputs) and bool(self.inputs[index])

    def has_output(self, index: int) -> bool:
        return index < len(self.outputs) and bool(self.outputs[index])

    def is_constant(self, index: int) -> bool:
        """Whether an input is known when the engine is built; True where there is no such input."""
        return not self.has_input(index) or self.inputs[index] in self._constants

    def constant(self, index: int) -> np.ndarray | None:
        """A constant input's values; None where it is not constant or its data lies outside the graph file."""
        import onnx

        found = self._constants.get(self.inputs[index]) if self.has_input(index) else None
        if not isinstance(found, onnx.TensorProto):
            return None if found is None else np.asarray(found)
        if found.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return np.asarray(onnx.numpy_helper.to_array(found))

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)


Check = Callable[[Node], Iterator[str]]


def _attention(node: Node) -> Iterator[str]:
    for index, name in enumerate(("Q", "K", "V", "attn_mask")):
        rank = node.rank(node.inputs[index]) if node.has_input(index) else None
        if rank not in (None, 4):
            yield f"{name} has {rank} dimensions, it must have 4 (heads as the second)"
    for index, name in ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen")):
        if node.has_input(index):
            yield f"the input {name} is not supported"
    for index, name in ((1, "present_key"), (2, "present_value"), (3, "qk_matmul_output")):
        if node.has_output(index):
            yield f"the output {name} is not supported"
    for name in ("softcap", "qk_matmul_output_mode"):
        if node.attributes.get(name, 0):
            yield f"the attribute {name}={node.attributes[name]} is not supported"


def _pool(node: Node) -> Iterator[str]:
    size = len(node.attributes.get("kernel_shape", (1, 1)))
    if size not in (2, 3):
        yield f"it pools over {size} dimensions, only 2 or 3 are supported"
    if any(step != 1 for step in node.attributes.get("dilations", ())):
        yield f"dilations {list(node.attributes['dilations'])} must all be 1"
    if node.operator == "MaxPool" and node.has_output(1):
        yield "the output Indices is not supported"


def _constant(node: Node) -> Iterator[str]:
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in node.attributes:
            yield f"the attribute {name} is not supported"


def _needs_constant(index: int, name: str) -> Check:
    def check(node: Node) -> Iterator[str]:
        if not node.is_constant(index):
            yield f"its input {name} must be known when the engine is built, {node.inputs[index]!r} is computed"

    return check


def _zero_point(node: Node) -> Iterator[str]:
    if node.has_input(2):
        values = node.constant(2)
        if values is None and not node.is_constant(2):
            yield f"its zero point {node.inputs[2]!r} is computed, it must be a constant 0"
        elif values is not None and np.any(values.astype(np.float32)):
            yield f"its zero point must be 0 (quantise symmetrically), it reaches {np.abs(values).max()}"
    result = node.element_type(node.outputs[0])
    if node.operator == "QuantizeLinear" and result is not None and result not in QUANTISED_OUTPUTS:
        yield f"it quantises to {result}, TensorRT takes {', '.join(QUANTISED_OUTPUTS)}"


def _dropout(node: Node) -> Iterator[str]:
    training = node.constant(2)
    if not node.is_constant(2) or (training is not None and bool(training.any())):
        yield "training_mode must be a constant that is false"


def _grid_sample(node: Node) -> Iterator[str]:
    rank = node.rank(node.inputs[0])
    if rank not in (None, 4, 5):
        yield f"its input has {rank} dimensions, only 4 or 5 are supported"


def _first_output(node: Node) -> Iterator[str]:
    for index in range(1, len(node.outputs)):
        if node.has_output(index):
            yield f"only its first output is supported, {node.outputs[index]!r} is its output {index + 1}"


def _resize(node: Node) -> Iterator[str]:
    choices = (
        ("mode", "nearest", RESIZE_MODES),
        ("coordinate_transformation_mode", "half_pixel", RESIZE_COORDINATES),
        ("nearest_mode", "round_prefer_floor", RESIZE_NEAREST),
        ("keep_aspect_ratio_policy", "stretch", ("stretch",)),
    )
    for name, default, supported in choices:
        found = node.text(name, default)
        if found not in supported:
            yield f"{name}={found} is not supported, only {', '.join(supported)}"
    if node.attributes.get("antialias", 0):
        yield "antialias=1 is not supported: resize before the graph"
    axes = list(node.attributes.get("axes", ()))
    rank = node.rank(node.inputs[0])
    if axes and node.has_input(2) and rank is not None and axes != list(range(rank)):
        yield f"axes {axes} with scales must be all {rank} in order"


def _scatter(node: Node) -> Iterator[str]:
    if node.text("reduction", "none") != "none":
        yield f"reduction={node.text('reduction', 'none')} is not supported"


def _top_k(node: Node) -> Iterator[str]:
    if not node.attributes.get("sorted", 1):
        yield "sorted=0 is not supported"
    count = node.constant(1)
    if count is not None and count.max() >= TOP_K_LIMIT:
        yield f"K={int(count.max())} must be below {TOP_K_LIMIT}"


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

RESTRICTIONS: dict[str, Check] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "Constant": _constant,
    "CumSum": _needs_constant(1, "axis"),
    "DequantizeLinear": _zero_point,
    "Dropout": _dropout,
    "GridSample": _grid_sample,
    "LayerNormalization": _first_output,
    "LpPool": _pool,
    "MaxPool": _pool,
    "OneHot": _needs_constant(1, "depth"),
    "QuantizeLinear": _zero_point,
    "Resize": _resize,
    "ScatterND": _scatter,
    "Squeeze": _needs_constant(1, "axes"),
    "TopK": _top_k,
    "Unsqueeze": _needs_constant(1, "axes"),
} | {f"Reduce{name}": _needs_constant(1, "axes") for name in _REDUCTIONS}
