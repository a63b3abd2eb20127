"""SmoothQuant: outlier channels of an activation move into the weights that multiply it, with the same product.

Xiao et al., "SmoothQuant" (ICML 2023): channel j of the activation is divided by s_j = max|X_j|^a / max|W_j|^(1-a) and
row j of the weights multiplied by it. Only activations that come straight out of a LayerNormalization are smoothed,
where 1 / s_j goes into its gamma and beta and costs nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vocabseg.calibration.scales import Scheme
from vocabseg.calibration.statistics import Statistics
from vocabseg.calibration.targets import Target, is_constant


def smooth(
    model: Any, found: list[Target], statistics: Mapping[str, Statistics], scheme: Scheme
) -> dict[str, Statistics]:
    """Fold the smoothing into a model; returns the statistics as they are afterwards.

    The histograms of smoothed activations are no longer known: theirs hold the channels' largest magnitudes alone, so
    that every method falls back to the largest one.
    """
    alpha = scheme.smooth if scheme.smooth is not None else 0.5
    changed = dict(statistics)
    nodes = {node.name: node for node in model.graph}
    for activation in dict.fromkeys(target.activation for target in found):
        users = [target for target in found if target.activation == activation and target.layer not in scheme.high]
        seen = statistics.get(activation)
        if not users or seen is None or not seen.channels.size or seen.largest <= 0:
            continue
        source = nodes[users[0].node].inputs[0].producer()
        if not _foldable(source, [nodes[target.node] for target in users]):
            continue
        factors = smoothing_factors(
            seen.channels, [nodes[target.node].inputs[1].const_value.numpy() for target in users], alpha
        )
        for index in (1, 2):
            if len(source.inputs) > index and source.inputs[index] is not None:
                _scale(model.graph, source, index, 1 / factors)
        for target in users:
            _scale(model.graph, nodes[target.node], 1, factors[:, None])
        changed[activation] = _rescaled(seen, factors)
    return changed


def smoothing_factors(channels: np.ndarray, weights: list[np.ndarray], alpha: float) -> np.ndarray:
    """(C,) float32: what each channel of the activation is divided by; 1 for channels that are always 0.

    channels (C,) the activation's largest magnitudes, weights (C, D) each.
    """
    rows = np.max([np.abs(array).max(1) for array in weights], axis=0)
    usable = (channels > 1e-6) & (rows > 1e-6)
    safe = np.where(usable, channels, 1).astype(np.float64) ** alpha / np.where(usable, rows, 1) ** (1 - alpha)
    return np.where(usable, np.clip(safe, 1e-3, 1e3), 1).astype(np.float32)


def _foldable(source: Any, users: list[Any]) -> bool:
    """Whether the activation comes out of a LayerNormalization of its own and is used by these MatMuls alone."""
    if source is None or source.op_type != "LayerNormalization":
        return False
    if not all(is_constant(value) for value in source.inputs[1:] if value is not None):
        return False
    output = source.outputs[0]
    every = {use.node.name for use in output.uses()}
    return not output.is_graph_output() and every == {user.name for user in users} and all(
        user.op_type == "MatMul" for user in users
    )  # fmt: skip


def _scale(graph: Any, node: Any, index: int, factors: np.ndarray) -> None:
    """Give a node its own copy of an initializer, multiplied."""
    import onnx_ir

    old = node.inputs[index]
    name = f"{old.name}_smooth" if len(old.uses()) == 1 else f"{old.name}_smooth_{node.name}"
    array = (old.const_value.numpy() * factors).astype(np.float32)
    tensor = onnx_ir.Tensor(array, name=name)
    value = onnx_ir.Value(
        name=name, const_value=tensor, shape=onnx_ir.Shape(array.shape), type=onnx_ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    node.replace_input_with(index, value)
    if not old.uses():
        del graph.initializers[old.name]


def _rescaled(seen: Statistics, factors: np.ndarray) -> Statistics:
    fresh = Statistics()
    fresh.update(seen.channels / factors, channels=True)
    return fresh
