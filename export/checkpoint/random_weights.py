"""Random weights that depend on the tensors' names alone: the same numbers on any machine, in any order of modules.

The model knows nothing, but its masks are neither empty nor full, and its queries differ from one another. Every tensor
has its own generator (Philox, keyed by the CRC-32 of the name), is drawn as float64, scaled by the first matching line
of `_rule`, and rounded to float32.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from vocabseg.export.model.clip import MEAN, STD
from vocabseg.export.model.swin import relative_positions

# Rows of CLIP's token embedding behind a learned prompt's buffers: start of text, end of text, ".", padding.
SIGNAL_TOKENS = {"start_signal": 49406, "end_signal": 49407, "dot_signal": 269, "pad_signal": 0}

# Keeps masks from covering the whole picture, by kind of stem.
_MASK_BIAS = {"basic": -0.175, "deep": -0.232, "small swin": -0.130, "swin": -0.165}
_PUBLISHED_SWIN = 96  # channels of the smallest published Swin's first stage
_LATERAL_GAIN = {"1": 0.15, "2": 0.3, "3": 0.6}  # damps fine detail, so that masks are smooth
_SWIN_GAIN = {"attn.qkv": 2.0, "attn.proj": 0.5, "mlp.fc1": 1.4, "mlp.fc2": 0.5}
_ATTENTION_GAIN = {"text": 3.0, "image": 2.0, "cross": 4.0, "self": 1.5}  # peaked enough for tokens to matter


def fill(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Weights for every name in `shapes`: float32 arrays of those shapes (int64 zeros for *.num_batches_tracked).

    The names are the published state_dict keys. The CLIP of a separate region adapter gets the same weights as the
    query side's if the shapes agree.
    """
    stem = _stem(shapes)
    arrays = {}
    for key in sorted(shapes):
        shape = tuple(int(size) for size in shapes[key])
        if not key.endswith(tuple(SIGNAL_TOKENS)):
            arrays[key] = _constant(key, shape) if _is_constant(key) else _draw(key, shape, stem)
    for key in sorted(shapes):
        leaf = _leaf(key)
        if leaf in SIGNAL_TOKENS:  # <adapter>.prompt_learner.<leaf>
            adapter = key.rsplit(".", 2)[0]
            row = SIGNAL_TOKENS[leaf]
            arrays[key] = arrays[f"{adapter}.clip_model.token_embedding.weight"][row : row + 1].copy()
    return arrays


def _stem(shapes: Mapping[str, Sequence[int]]) -> str:
    patches = shapes.get("backbone.patch_embed.proj.weight")
    if patches is not None:
        return "small swin" if patches[0] < _PUBLISHED_SWIN else "swin"
    return "deep" if "backbone.stem.conv2.weight" in shapes else "basic"


def _leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _is_constant(key: str) -> bool:
    return _leaf(key) in ("num_batches_tracked", "empty_weight", "pixel_mean", "pixel_std", "relative_position_index")


def _constant(key: str, shape: tuple[int, ...]) -> np.ndarray:
    leaf = _leaf(key)
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "empty_weight":  # the loss weight of each class; the last one is "no object"
        weight = np.ones(shape, np.float32)
        weight[-1] = 0.1
        return weight
    if leaf == "relative_position_index":
        return relative_positions(math.isqrt(shape[0])).numpy()
    values = MEAN if leaf == "pixel_mean" else STD
    return np.asarray(values, np.float32).reshape(shape) * np.float32(255.0)


def _draw(key: str, shape: tuple[int, ...], stem: str) -> np.ndarray:
    name = key.replace("_region_clip_adapter.clip_model.", "clip_adapter.clip_model.")
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    normal = generator.standard_normal(shape)
    if _leaf(key) == "running_var":
        normal = np.abs(normal)
    offset, scale = _rule(key, shape, stem)
    return np.asarray(offset + scale * normal, np.float32)


def _rule(key: str, shape: tuple[int, ...], stem: str) -> tuple[float, float]:
    """Offset and scale of a tensor: value = offset + scale * normal."""
    leaf = _leaf(key)
    clip = "clip_model." in key
    if leaf == "running_var":
        return 1.0, 0.2
    if leaf == "running_mean":
        return 0.0, 0.02
    if leaf == "logit_scale":
        return math.log(100.0), 0.0
    if leaf in ("prefix_prompt", "suffix_prompt") or key.endswith("token_embedding.weight"):
        return 0.0, 0.02
    if leaf in ("non_object_embedding", "class_embedding"):
        return 0.0, shape[-1] ** -0.5
    if leaf in ("mask_embedding", "relative_position_bias_table"):
        return 0.0, 0.5
    if key.endswith("query_embed.weight"):
        return 0.0, 1.0
    if clip and leaf == "positional_embedding":
        return 0.0, (0.003 if key.endswith("clip_model.positional_embedding") else 0.5 * shape[-1] ** -0.5)
    if leaf in ("text_projection", "proj"):  # used as x @ weight
        return 0.0, shape[0] ** -0.5
    if len(shape) == 1:
        return _vector_rule(key, stem)
    return 0.0, _matrix_scale(key, int(np.prod(shape[1:])), clip and shape[-1] > 3)


def _vector_rule(key: str, stem: str) -> tuple[float, float]:
    """Gains of normalisations and every bias."""
    if _leaf(key).endswith("weight"):
        if re.search(r"(res\d\.\d+\.conv3\.norm|layer\d\.\d+\.bn3)\.weight$", key):
            return 0.2, 0.02  # a residual branch adds little: activations stay bounded over many blocks
        lateral = re.search(r"pixel_decoder\.adapter_(\d)\.norm\.weight$", key)
        return (_LATERAL_GAIN[lateral.group(1)], 0.02) if lateral else (1.0, 0.1)
    if key.endswith("mask_embed.layers.2.bias"):
        return _MASK_BIAS[stem], 0.02
    if key.endswith("mask_features.bias"):
        return 0.8, 0.02
    if key.endswith("predictor.mask_embed.layers.0.bias"):
        return -1.5, 0.02  # sparse activations keep the queries apart
    if key.endswith("predictor.class_embed.layers.0.bias"):
        return -2.5, 0.02
    return 0.0, 0.02


def _matrix_scale(key: str, fan_in: int, clip_patch: bool) -> float:
    """Scale of a convolution or linear layer."""
    unit = fan_in**-0.5
    if key.endswith("mask_embed.layers.2.weight"):
        return 1.5 * unit
    if key.endswith("in_proj_weight") or "attnpool" in key:
        return _ATTENTION_GAIN[_attention_kind(key)] * unit
    if "decoder.layers" in key and key.endswith(("self_attn.out_proj.weight", "linear2.weight")):
        return 0.3 * unit  # parts that all queries share
    swin = re.match(
        r"backbone\.(?:layers\.\d+\.(?:blocks\.\d+\.)?)?(attn\.|mlp\.|downsample\.|patch_embed\.)(\w+)\.weight", key
    )
    if swin:
        return _SWIN_GAIN.get(swin[1] + swin[2], 1.0) * unit
    plain = ("out_proj.weight", "mlp.c_proj.weight", "linear2.weight", "shortcut.weight", "downsample.0.weight")
    if key.endswith((*plain, "input_proj.weight")) or (clip_patch and key.endswith("visual.conv1.weight")):
        return unit
    return (2.0 / fan_in) ** 0.5  # He et al. 2015: for layers followed by ReLU


def _attention_kind(key: str) -> str:
    if "clip_model.transformer" in key:
        return "text"
    if "clip_model." in key:
        return "image"
    return "cross" if "multihead_attn" in key else "self"
