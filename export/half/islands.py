"""Which nodes of a graph run in 16 bits and which stay in float32: by a recipe, and by the operations' own definitions
(onnx.defs), so that no operation needs a special case here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vocabseg.export.graph.onnx_file import ExportError
from vocabseg.export.graph.values import gives_half, takes_half
from vocabseg.export.half.recipe import GraphRecipe, Keep

LARGEST = 65504.0  # in FP16; from 65520 a number is rounded to infinity
OVERFLOW = 65520.0
SMALLEST_NORMAL = 2.0**-14
FEW = 16  # constants of at most this many numbers are scalars of a formula, where each one counts

# How much rounding may change the scale of a channel: less than the rounding to eight bits changes a number.
SCALE_ERROR = 1 / 64
SCALED = ("QuantizeLinear", "DequantizeLinear")

# Take inputs of any type: the type of their output does not depend on it.
ANY_INPUT = ("Shape", "Size", "Cast")


@dataclass
class Islands:
    """`low`: nodes that run in 16 bits. `kept`: float nodes that stay in float32, with the reason of each."""

    low: set[Any] = field(default_factory=set)
    kept: dict[Any, str] = field(default_factory=dict)


def find_islands(
    model: Any, recipe: GraphRecipe, what: str, strict: bool = True, precision: str = "float16"
) -> Islands:
    """Sort the nodes of an onnx_ir model with types by the recipe; raises ExportError for what cannot be rewritten.

    `what` is the graph's name in errors; unless `strict`, nodes that the recipe names may be missing. Beside what the
    recipe names, a node stays in float32 if its operation has no form in `precision`, and for FP16 if a weight is too
    large for it, or if a constant of its formula would vanish; bfloat16 has the range of float32.
    """
    islands = Islands()
    for entry in recipe.keep:
        found = [node for node in model.graph if entry.covers(node.op_type, node.name or "")]
        if strict and not found and entry.node is not None and not _is_pattern(entry):
            raise ExportError(f"{what} has no node {entry.node!r}, which the recipe keeps in float32")
        for node in _with_sources(found) if entry.feeding else found:
            if is_float(node):
                islands.kept.setdefault(node, entry.reason)
    for node in model.graph:
        if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
            raise ExportError(f"{what} has branches or loops ({node.op_type}): only plain graphs are rewritten")
        if node in islands.kept or not is_float(node):
            continue
        reason = _must_stay(node, model, precision)
        if reason is None:
            islands.low.add(node)
        else:
            islands.kept[node] = reason
    return islands


def is_float(node: Any) -> bool:
    """Whether any input or output of a node is a float32 tensor."""
    return any(value is not None and is_float_value(value) for value in (*node.inputs, *node.outputs))


def is_float_value(value: Any) -> bool:
    return value.dtype is not None and value.dtype.name == "FLOAT"


def _is_pattern(entry: Keep) -> bool:
    return any(mark in (entry.node or "") for mark in "*?[")


def _with_sources(nodes: list[Any]) -> Iterator[Any]:
    """The nodes and everything they are computed from."""
    waiting, met = list(nodes), set()
    while waiting:
        node = waiting.pop()
        if node not in met:
            met.add(node)
            yield node
            if node.op_type == "Cast":
                continue  # its input may have any type
            waiting += [value.producer() for value in node.inputs if value is not None and value.producer() is not None]


def _must_stay(node: Any, model: Any, low: str) -> str | None:
    version = model.graph.opset_imports[""]
    floats = [index for index, value in enumerate(node.inputs) if value is not None and is_float_value(value)]
    outputs = [index for index, value in enumerate(node.outputs) if is_float_value(value)]
    halves = [takes_half(node, index, version, low) for index in floats]
    if outputs and not (any(halves) or any(gives_half(node, index, version, low) for index in outputs)):
        return f"{node.op_type} has no {'FP16' if low == 'float16' else low} form"
    if outputs and not floats and node.op_type not in ("Cast", "ConstantOfShape"):
        return f"{node.op_type} makes float32 numbers"
    for index, half in zip(floats, halves, strict=True):
        constant = node.inputs[index].const_value
        if half and constant is not None and low == "float16":
            check = _scale_does_not_fit if node.op_type in SCALED else _does_not_fit
            reason = check(node.inputs[index].name, constant.numpy())
            if reason is not None:
                return reason
    return None


def _scale_does_not_fit(name: str, values: np.ndarray) -> str | None:
    """As `_does_not_fit` for scales of a quantisation, each of which multiplies a whole channel."""
    scales = values[values != 0]
    with np.errstate(under="ignore", over="ignore"):
        errors = np.abs(scales.astype(np.float16).astype(np.float32) / scales - 1)
    if errors.max(initial=0.0) > SCALE_ERROR:
        worst = float(scales[errors.argmax()])
        return f"{name} holds {worst:.4g}, which changes by {100 * float(errors.max()):.0f} % in FP16"
    return None


def _does_not_fit(name: str, values: np.ndarray) -> str | None:
    magnitudes = np.abs(values[np.isfinite(values)])
    largest = float(magnitudes.max(initial=0.0))
    if largest >= OVERFLOW:
        return f"{name} reaches {largest:.4g}, FP16 {LARGEST:.0f}"
    with np.errstate(under="ignore"):
        vanished = magnitudes[(magnitudes > 0) & (magnitudes.astype(np.float16) == 0)]
    if values.size <= FEW and vanished.size:
        return f"{name} holds {float(vanished[0]):.4g}, which is 0 in FP16"
    return None
