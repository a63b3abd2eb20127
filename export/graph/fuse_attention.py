"""Attention written out as products and a softmax -> one MultiHeadAttention of ONNX Runtime (com.microsoft).

Queries, keys and values stay (batch, tokens, width), the layout that its flash attention reads without a copy, so a
stacked projection is split into three products, each large enough to fill a GPU. Two biases vanish, exactly: adding the
same vector to all keys adds the same number to all scores of a query, which a softmax does not see; and since a row
of weights sums to one, the values' bias passes through attention into the output projection's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vocabseg.export.graph.editor import MICROSOFT, Editor, attribute, constant, made_by, only_user

HEADS_SECOND = [0, 2, 1, 3]  # (batch, tokens, heads, width) <-> (batch, heads, tokens, width)
KEYS_LAST = [0, 2, 3, 1]  # (batch, tokens, heads, width) -> (batch, heads, width, tokens)


@dataclass(frozen=True)
class _Side:
    """Where queries, keys or values come from: part `part` of `parts` of `source` (batch, tokens, parts * width)."""

    source: Any
    heads: int
    part: int
    parts: int


@dataclass(frozen=True)
class _Projection:
    """x @ weight + bias; no bias is None."""

    x: Any
    weight: Any
    bias: Any


def fuse_attention(editor: Editor, kept: set[str]) -> int:
    """Fuse every attention of which no node is in `kept` (names); returns how many."""
    return sum(_fuse(editor, node, kept) for node in list(editor.graph) if node.op_type == "Softmax")


def _fuse(editor: Editor, softmax: Any, kept: set[str]) -> bool:
    mixing = only_user(softmax.outputs[0], "MatMul")
    back = None if mixing is None else only_user(mixing.outputs[0], "Transpose")
    merged = None if back is None else only_user(back.outputs[0], "Reshape")
    if merged is None or attribute(back, "perm") != HEADS_SECOND:
        return False
    scores, mask = made_by(softmax.inputs[0], "MatMul"), None
    masked = made_by(softmax.inputs[0], "Add")
    if masked is not None:
        scores, mask = made_by(masked.inputs[0], "MatMul"), constant(masked.inputs[1])
        if scores is None or mask is None or not _is_causal(mask):
            return False
    if scores is None:
        return False
    queries, scale, scaled = scores.inputs[0], 1.0, made_by(scores.inputs[0], "Mul")
    if scaled is not None:
        factor = constant(scaled.inputs[1])
        if factor is None or factor.size != 1:
            return False
        queries, scale = scaled.inputs[0], float(factor.reshape(()))
    sides = [side for side in (_side(queries), _keys(scores.inputs[1]), _side(mixing.inputs[1])) if side is not None]
    if len(sides) < 3 or len({side.heads for side in sides}) > 1:
        return False
    nodes = [softmax, mixing, back, merged, scores, masked, scaled]
    if any(node is not None and node.name in kept for node in nodes):
        return False
    query, key, value = (_part(editor, softmax, side, drop_bias=index > 0) for index, side in enumerate(sides))
    if value[1] is not None and not _move_bias(editor, merged, value[1]):
        value = (_part(editor, softmax, sides[2], drop_bias=False)[0], None)
    attributes = {"num_heads": sides[0].heads, "scale": scale, "unidirectional": int(mask is not None)}
    inputs = [query[0], key[0], value[0]]
    name = f"{softmax.name}_attention"
    (fused,) = editor.before(merged, "MultiHeadAttention", inputs, attributes, MICROSOFT, name=name)
    editor.replace(merged.outputs[0], fused)
    editor.sweep()
    return True


def _is_causal(mask: np.ndarray) -> bool:
    """Whether it hides exactly what comes later."""
    tokens = mask.shape[-1]
    wanted = np.triu(np.full((tokens, tokens), -np.inf, mask.dtype), 1)
    return mask.size == tokens * tokens and np.array_equal(mask.reshape(tokens, tokens), wanted)


def _side(value: Any) -> _Side | None:
    """Behind (batch, heads, tokens, width)."""
    split = made_by(value, "Split")
    stacked = value if split is None else split.inputs[0]
    transposed = made_by(stacked, "Transpose")
    if transposed is None or attribute(transposed, "perm") != HEADS_SECOND:
        return None
    return _behind(transposed.inputs[0], value, split)


def _keys(value: Any) -> _Side | None:
    """Behind (batch, heads, width, tokens)."""
    turned = made_by(value, "Transpose")
    if turned is None:
        return None
    if attribute(turned, "perm") == KEYS_LAST:
        return _behind(turned.inputs[0], turned.inputs[0], None)
    return _side(turned.inputs[0]) if attribute(turned, "perm") == [0, 1, 3, 2] else None


def _behind(value: Any, output: Any, split: Any) -> _Side | None:
    """Behind the reshape to (batch, tokens, heads, width), of which `split` takes a part."""
    reshape = made_by(value, "Reshape")
    heads = None if reshape is None else _heads(reshape.inputs[1])
    if heads is None:
        return None
    if split is None:
        return _Side(reshape.inputs[0], heads, 0, 1)
    parts = len(split.outputs)
    if len(split.inputs) > 1 or attribute(split, "axis", 0) != 1 or heads % parts:
        return None
    return _Side(reshape.inputs[0], heads // parts, list(split.outputs).index(output), parts)


def _heads(shape: Any) -> int | None:
    """The third size of a reshape to four axes."""
    sizes = constant(shape)
    return int(sizes[2]) if sizes is not None and sizes.size == 4 else None


def _projection(value: Any) -> _Projection | None:
    added = made_by(value, "Add")
    product, bias = made_by(value, "MatMul"), None
    if added is not None:
        product, bias = made_by(added.inputs[0], "MatMul"), added.inputs[1]
    if product is None or constant(product.inputs[1]) is None or (bias is not None and constant(bias) is None):
        return None
    return _Projection(product.inputs[0], product.inputs[1], bias)


def _part(editor: Editor, place: Any, side: _Side, drop_bias: bool) -> tuple[Any, np.ndarray | None]:
    """Queries, keys or values (batch, tokens, width), and the bias that was left out of them."""
    projection = _projection(side.source)
    if projection is None:
        if side.parts == 1:
            return side.source, None
        parts = editor.before(
            place, "Split", [side.source], {"axis": -1, "num_outputs": side.parts}, outputs=side.parts
        )
        return parts[side.part], None
    weight, bias = constant(projection.weight), constant(projection.bias)
    assert weight is not None
    width = weight.shape[1] // side.parts
    columns = slice(side.part * width, (side.part + 1) * width)
    matrix = projection.weight
    if side.parts > 1:
        matrix = editor.constant(weight[:, columns], f"{projection.weight.name}_{side.part}")
    (product,) = editor.before(place, "MatMul", [projection.x, matrix])
    if bias is None:
        return product, None
    if drop_bias:
        return product, bias[columns]
    added = projection.bias
    if side.parts > 1:
        added = editor.constant(bias[columns], f"{projection.bias.name}_{side.part}")
    return editor.before(place, "Add", [product, added])[0], None


def _move_bias(editor: Editor, merged: Any, bias: np.ndarray) -> bool:
    """Add what `bias` becomes behind the output projection to that one's bias."""
    product = only_user(merged.outputs[0], "MatMul")
    added = None if product is None else only_user(product.outputs[0], "Add")
    weight = None if product is None else constant(product.inputs[1])
    places = [] if added is None else [i for i, value in enumerate(added.inputs) if constant(value) is not None]
    if weight is None or added is None or len(places) != 1:
        return False
    place = places[0]
    own = constant(added.inputs[place])
    assert own is not None
    moved = (own.astype(np.float64) + bias.astype(np.float64) @ weight.astype(np.float64)).astype(own.dtype)
    added.replace_input_with(place, editor.constant(moved, f"{added.inputs[place].name}_with_values"))
    return True
