"""SmoothQuant: outlier channels of an activation move into the weights that multiply it; the product stays the same.

Xiao et al., "SmoothQuant" (ICML 2023): channel j of the activation is divided by s_j = max|X_j|^a / max|W_j|^(1-a) and
row j of the weights is multiplied by it. Only activations that come straight out of a LayerNormalization are smoothed:
there 1 / s_j goes into gamma and beta and costs nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vocabseg.calibration.graphs.linear_nodes import LinearNode
from vocabseg.calibration.graphs.scales import Scheme
from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.export.graph.editor import Editor
from vocabseg.export.graph.layers import is_constant


def smooth(
    model: Any, found: list[LinearNode], statistics: Mapping[str, Statistics], scheme: Scheme
) -> dict[str, Statistics]:
    """Fold the smoothing into a model; returns the statistics that hold afterwards.

    The histogram of a smoothed activation is no longer known: its statistics hold the channels' largest magnitudes
    alone, so that every method falls back to the largest one.
    """
    alpha = scheme.smooth if scheme.smooth is not None else 0.5
    changed = dict(statistics)
    editor = Editor(model)
    nodes = {node.name: node for node in model.graph}
    for activation in dict.fromkeys(node.activation for node in found):
        users = [nodes[one.node] for one in found if one.activation == activation and one.layer not in scheme.high]
        seen = statistics.get(activation)
        if not users or seen is None or not seen.channels.size or seen.largest <= 0:
            continue
        source = users[0].inputs[0].producer()
        if not _foldable(source, users):
            continue
        factors = smoothing_factors(seen.channels, [user.inputs[1].const_value.numpy() for user in users], alpha)
        for index, value in enumerate(source.inputs):
            if index and value is not None:
                _scale(editor, source, index, 1 / factors)
        for user in users:
            _scale(editor, user, 1, factors[:, None])
        changed[activation] = Statistics()
        changed[activation].update(seen.channels / factors, channels=True)
    editor.sweep()
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
    """Whether the activation comes out of a LayerNormalization and is used by these MatMuls alone."""
    if source is None or source.op_type != "LayerNormalization" or source.outputs[0].is_graph_output():
        return False
    constant = all(is_constant(value) for value in source.inputs[1:] if value is not None)
    every = {use.node.name for use in source.outputs[0].uses()}
    return constant and every == {user.name for user in users} and all(user.op_type == "MatMul" for user in users)


def _scale(editor: Editor, node: Any, index: int, factors: np.ndarray) -> None:
    """Give a node its own copy of an initializer, multiplied."""
    old = node.inputs[index]
    array = (old.const_value.numpy() * factors).astype(np.float32)
    node.replace_input_with(index, editor.constant(array, f"{old.name}_smooth"))
