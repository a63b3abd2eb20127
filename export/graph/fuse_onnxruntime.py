"""A standard graph -> one with ONNX Runtime's own operations, for its CUDA provider ("float16-onnxruntime").

The provider fuses nothing of a transformer by itself, and its Python package's optimizer finds no attention in graphs
of torch's newer exporter; onnxscript's fusions leave the splits and transposes around it, and find none in the proposal
network. The provider of onnxruntime-gpu 1.31.1 has FP16 kernels for the operations used here; TensorRT's parser knows
none of them.
"""

from typing import Any

from vocabseg.export.graph.editor import MICROSOFT, Editor, attribute, constant, made_by, only_user
from vocabseg.export.graph.fuse_attention import fuse_attention

# Channels that the provider's GroupNorm takes here: pairs of them fill one of its blocks of threads.
GROUP_NORM_CHANNELS = (128, 256, 320, 384, 512)
NHWC, NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


def fuse(model: Any, kept: set[str], group_norm: bool = True) -> dict[str, int]:
    """Rewrite an onnx_ir model in place, but for nodes named in `kept`; returns how often each rewrite was made.

    `group_norm` is for checks on a CPU, where ONNX Runtime has no such operation.
    """
    editor = Editor(model)
    rewrites = [
        ("quick_gelu", "Sigmoid", _quick_gelu),
        ("bias_gelu", "Gelu", _bias_gelu),
        ("skip_layer_norm", "LayerNormalization", _skip_layer_norm),
        *([("group_norm", "GroupNormalization", _group_norm)] if group_norm else []),
    ]
    counts = {"attention": fuse_attention(editor, kept)}
    for name, operation, rewrite in rewrites:
        nodes = [node for node in model.graph if node.op_type == operation]
        counts[name] = sum(rewrite(editor, node, kept) for node in nodes)
    editor.sweep()
    return counts


def _quick_gelu(editor: Editor, sigmoid: Any, kept: set[str]) -> bool:
    """x * sigmoid(a * x)."""
    scaled, product = made_by(sigmoid.inputs[0], "Mul"), only_user(sigmoid.outputs[0], "Mul")
    if scaled is None or product is None or kept & {sigmoid.name, scaled.name, product.name}:
        return False
    factor = constant(scaled.inputs[1])
    if factor is None or factor.size != 1 or scaled.inputs[0] not in product.inputs:
        return False
    attributes = {"alpha": float(factor.reshape(()))}
    (made,) = editor.before(product, "QuickGelu", [scaled.inputs[0]], attributes, MICROSOFT)
    editor.replace(product.outputs[0], made)
    editor.sweep()
    return True


def _bias_gelu(editor: Editor, gelu: Any, kept: set[str]) -> bool:
    """gelu(x + bias) with the exact error function."""
    added = made_by(gelu.inputs[0], "Add")
    exact = attribute(gelu, "approximate", "none") == "none"
    if added is None or not exact or only_user(added.outputs[0], "Gelu") is None or kept & {gelu.name, added.name}:
        return False
    bias = constant(added.inputs[1])
    if bias is None or bias.ndim != 1:
        return False
    (made,) = editor.before(gelu, "BiasGelu", list(added.inputs), {}, MICROSOFT)
    editor.replace(gelu.outputs[0], made)
    editor.sweep()
    return True


def _skip_layer_norm(editor: Editor, norm: Any, kept: set[str]) -> bool:
    """layer_norm(residual + (x + bias)), which gives the sum as well; a projection gave x."""
    total = made_by(norm.inputs[0], "Add")
    if total is None or len(norm.inputs) < 3 or len(norm.outputs) > 1 or kept & {norm.name, total.name}:
        return False
    for index in (0, 1):
        added = made_by(total.inputs[index], "Add")
        product = None if added is None else made_by(added.inputs[0], "MatMul")
        bias = None if added is None else constant(added.inputs[1])
        residual = total.inputs[1 - index]
        if product is None or bias is None or bias.ndim != 1 or constant(residual) is not None:
            continue
        if only_user(added.outputs[0], "Add") is None or added.name in kept:
            continue
        inputs = [product.outputs[0], residual, norm.inputs[1], norm.inputs[2], added.inputs[1]]
        attributes = {"epsilon": float(attribute(norm, "epsilon", 1e-5))}
        made = editor.before(total, "SkipLayerNormalization", inputs, attributes, MICROSOFT, 4, f"{norm.name}_skip")
        for value in made[1:3]:
            value.name = ""
        editor.replace(norm.outputs[0], made[0])
        editor.replace(total.outputs[0], made[3])
        editor.sweep()
        return True
    return False


def _group_norm(editor: Editor, norm: Any, kept: set[str]) -> bool:
    """Channels last and behind two transposes, which cancel with those of convolutions that are channels last."""
    scale = constant(norm.inputs[1])
    if norm.name in kept or scale is None or scale.size not in GROUP_NORM_CHANNELS:
        return False
    groups = int(attribute(norm, "num_groups", 0))
    if (scale.size // groups) % 2:
        return False
    (last,) = editor.before(norm, "Transpose", [norm.inputs[0]], {"perm": NHWC})
    attributes = {
        "groups": groups, "activation": 0, "channels_last": 1, "epsilon": float(attribute(norm, "epsilon", 1e-5)),
    }  # fmt: skip
    (made,) = editor.before(norm, "GroupNorm", [last, norm.inputs[1], norm.inputs[2]], attributes, MICROSOFT)
    (first,) = editor.before(norm, "Transpose", [made], {"perm": NCHW})
    editor.replace(norm.outputs[0], first)
    editor.sweep()
    return True
