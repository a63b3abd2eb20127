"""The proposal network: image -> class-agnostic mask logits and one embedding per mask (MaskFormer, Cheng et al. 2021).

Module names are the published state_dict keys. Only what inference needs is computed: the heads of the last layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vocabseg.export.model.attention import attend, merge_heads, split_heads
from vocabseg.export.model.resnet import NormalisedConv2d, ResNet, ResNetSizes, read_resnet_sizes, resnet_sizes
from vocabseg.export.model.swin import Swin, SwinSizes, read_swin_sizes, swin_sizes

# Of the decoder's attention and of the pixel decoder's normalisation; the weights do not show them.
HEADS, GROUPS = 8, 32


@dataclass(frozen=True)
class ProposalSizes:
    """Sizes of a proposal network; `class_layers` and `mask_layers` list the widths of the two heads' layers.

    `projected`: a convolution takes the last feature map to the decoder's width; where they agree it may be absent.
    """

    backbone: ResNetSizes | SwinSizes
    pixel: int = 256
    mask: int = 256
    hidden: int = 256
    feed_forward: int = 2048
    layers: int = 6
    queries: int = 100
    class_layers: tuple[int, ...] = (1024, 512)
    mask_layers: tuple[int, ...] = (256, 256, 256)
    projected: bool = True

    @property
    def kind(self) -> str:
        """The configuration's name of the backbone: "r50", "r101c" or "swin", whatever their depths and widths."""
        if isinstance(self.backbone, SwinSizes):
            return "swin"
        return "r101c" if self.backbone.deep_stem else "r50"

    @property
    def dilated(self) -> bool:
        """Whether the last stage keeps stride 16."""
        return isinstance(self.backbone, ResNetSizes) and self.backbone.res5_dilation > 1


def proposal_sizes(backbone: str, embedding: int) -> ProposalSizes:
    """Published sizes for a backbone ("r50", "r101c" or "swin") and the width of CLIP's embeddings."""
    sizes = swin_sizes() if backbone == "swin" else resnet_sizes(backbone)
    return ProposalSizes(backbone=sizes, class_layers=(1024, embedding))


def read_proposal_sizes(shapes: Mapping[str, Sequence[int]]) -> ProposalSizes:
    """Sizes read off the shapes of the tensors ("backbone.*", "sem_seg_head.*"); KeyError if one is missing."""
    prefix = "backbone."
    backbone = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    pixel, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    layers = predictor + "transformer.decoder.layers."

    def widths(head: str) -> tuple[int, ...]:
        prefix = f"{predictor}{head}.layers."
        return tuple(shapes[f"{prefix}{index}.weight"][0] for index in range(_count(shapes, prefix)))

    sizes = ProposalSizes(
        backbone=(read_swin_sizes if "patch_embed.proj.weight" in backbone else read_resnet_sizes)(backbone),
        pixel=shapes[pixel + "layer_4.weight"][0],
        mask=shapes[pixel + "mask_features.weight"][0],
        hidden=shapes[predictor + "query_embed.weight"][1],
        feed_forward=shapes[layers + "0.linear1.weight"][0],
        layers=_count(shapes, layers),
        queries=shapes[predictor + "query_embed.weight"][0],
        class_layers=widths("class_embed"),
        mask_layers=widths("mask_embed"),
    )
    projected = predictor + "input_proj.weight" in shapes or sizes.backbone.outer[3] != sizes.hidden
    return replace(sizes, projected=projected)


def _count(shapes: Mapping[str, Sequence[int]], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)})


class PixelDecoder(nn.Module):
    """Top-down feature pyramid: backbone features -> mask features (B, mask, H/4, W/4)."""

    def __init__(self, sizes: ProposalSizes):
        super().__init__()
        width = sizes.pixel
        channels = sizes.backbone.outer
        for index in (1, 2, 3):
            self.add_module(f"adapter_{index}", self._conv(channels[index - 1], width, 1))
            self.add_module(f"layer_{index}", self._conv(width, width, 3))
        self.add_module("layer_4", self._conv(channels[3], width, 3))
        self.mask_features = nn.Conv2d(width, sizes.mask, 3, padding=1)
        self.dilated = sizes.dilated

    @staticmethod
    def _conv(inputs: int, outputs: int, kernel: int) -> NormalisedConv2d:
        return NormalisedConv2d(inputs, outputs, kernel, nn.GroupNorm(GROUPS, outputs))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        y = self.get_submodule("layer_4")(features[3]).relu()
        for index in (3, 2, 1):
            lateral = self.get_submodule(f"adapter_{index}")(features[index - 1])
            if not (index == 3 and self.dilated):
                y = self.enlarge(y, lateral)
            y = self.get_submodule(f"layer_{index}")(lateral + y).relu()
        return self.mask_features(y)

    def enlarge(self, y: Tensor, lateral: Tensor) -> Tensor:
        """A map in the size of the next larger one, which is twice as large for an image of a multiple of 32."""
        return functional.interpolate(y, scale_factor=2.0, mode="nearest")


class Attention(nn.Module):
    """Multi-head attention, batch first.

    The published checkpoints stack the weights of queries, keys and values as `in_proj_weight` and `in_proj_bias`. Here
    they are separate parameters, so that an exported graph has no splits; loading and saving use the published names.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.fused_attention = False
        for name in ("query", "key", "value"):
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.zeros(width, width)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q = split_heads(functional.linear(query, self.query_weight, self.query_bias), self.heads)
        k = split_heads(functional.linear(key, self.key_weight, self.key_bias), self.heads)
        v = split_heads(functional.linear(value, self.value_weight, self.value_bias), self.heads)
        mixed = attend(q * q.shape[-1] ** -0.5, k, v, fused=self.fused_attention)
        return self.out_proj(merge_heads(mixed))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for kind in ("weight", "bias"):
            parts = [self.get_parameter(f"{name}_{kind}") for name in ("query", "key", "value")]
            destination[f"{prefix}in_proj_{kind}"] = torch.cat(parts).detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for kind in ("weight", "bias"):
            stacked = state_dict.pop(f"{prefix}in_proj_{kind}", None)
            if stacked is not None:
                for name, part in zip(("query", "key", "value"), stacked.chunk(3), strict=True):
                    state_dict[f"{prefix}{name}_{kind}"] = part.clone()
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class DecoderLayer(nn.Module):
    """Self-attention among the queries, attention to the image, feed-forward; normalised after each (DETR)."""

    def __init__(self, width: int, feed_forward: int):
        super().__init__()
        self.self_attn = Attention(width, HEADS)
        self.multihead_attn = Attention(width, HEADS)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, position: Tensor) -> Tensor:
        placed = x + queries
        x = self.norm1(x + self.self_attn(placed, placed, x))
        x = self.norm2(x + self.multihead_attn(x + queries, memory + position, memory))
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


class Decoder(nn.Module):
    def __init__(self, sizes: ProposalSizes):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(sizes.hidden, sizes.feed_forward) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.hidden)

    def forward(self, queries: Tensor, memory: Tensor, position: Tensor) -> Tensor:
        x = 0 * queries  # zeros_like would export arithmetic on their size
        for layer in self.layers:
            x = layer(x, queries, memory, position)
        return self.norm(x)


class Transformer(nn.Module):
    """Holds the decoder under its published name; the published settings have no encoder."""

    def __init__(self, sizes: ProposalSizes):
        super().__init__()
        self.decoder = Decoder(sizes)


class Perceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, widths: Sequence[int]):
        super().__init__()
        pairs = zip((inputs, *widths[:-1]), widths, strict=True)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Predictor(nn.Module):
    """The queries attend to res5; then each yields an embedding and a mask."""

    def __init__(self, sizes: ProposalSizes):
        super().__init__()
        self.query_embed = nn.Embedding(sizes.queries, sizes.hidden)
        self.input_proj = nn.Conv2d(sizes.backbone.outer[3], sizes.hidden, 1) if sizes.projected else nn.Identity()
        self.transformer = Transformer(sizes)
        self.class_embed = Perceptron(sizes.hidden, sizes.class_layers)
        self.mask_embed = Perceptron(sizes.hidden, sizes.mask_layers)

    def forward(self, res5: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.input_proj(res5)  # (B, C, h, w)
        position = sine_position_embedding(memory)
        batch = 0 * memory[:, :1, :1, 0]  # (B, 1, 1) zeros: repeat the queries for every image, whatever the batch
        x = self.transformer.decoder(self.query_embed.weight + batch, _to_sequence(memory), _to_sequence(position))
        return torch.einsum("bnc,bchw->bnhw", self.mask_embed(x), mask_features), self.class_embed(x)


def _to_sequence(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h * w, C)


def sine_position_embedding(x: Tensor) -> Tensor:
    """The positions (1, C, h, w) float32 of the pixels of a map (B, C, h, w), as in DETR.

    The first half of the channels encodes y, the second x; even channels are sines, odd ones cosines.
    """
    channels = x.shape[1] // 2
    y, x = _sines(x[:1, :1, :, :1], 2, channels), _sines(x[:1, :1, :1], 3, channels)
    return torch.cat([y + 0 * x, 0 * y + x], dim=1)  # (1, C / 2, h, 1) and (1, C / 2, 1, w), both to (h, w)


def _sines(line: Tensor, axis: int, channels: int) -> Tensor:
    """Sines and cosines (1, channels, ...) of the places 1, 2, ... along a line of pixels (1, 1, ...).

    The places are a running sum of ones, as in DETR, so that an exported graph calculates with no sizes.
    """
    place = (line == line).float().cumsum(axis)
    place = place / (place.amax(axis, keepdim=True) + 1e-6) * (2 * math.pi)
    channel = torch.arange(channels, dtype=torch.float32, device=line.device)[:, None, None]
    angle = place / 10000 ** (channel // 2 * 2 / channels)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())


class SegmentationHead(nn.Module):
    def __init__(self, sizes: ProposalSizes):
        super().__init__()
        self.pixel_decoder = PixelDecoder(sizes)
        self.predictor = Predictor(sizes)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self.predictor(features[3], self.pixel_decoder(features))


class ProposalNetwork(nn.Module):
    """Normalised, zero-padded image (B, 3, H, W) float32 -> mask logits (B, N, H/4, W/4), query embeddings (B, N, D).

    H and W are multiples of 32. The padded area is not masked: attention sees it, and the position embedding counts it.
    The query embeddings are not normalised.
    """

    def __init__(self, sizes: ProposalSizes):
        super().__init__()
        self.sizes = sizes
        self.backbone = Swin(sizes.backbone) if isinstance(sizes.backbone, SwinSizes) else ResNet(sizes.backbone)
        self.sem_seg_head = SegmentationHead(sizes)

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width of an image to trace with: tracing takes what is 1 in it, such as one window, for fixed."""
        tiles = self.sizes.backbone.window if isinstance(self.sizes.backbone, SwinSizes) else 1
        return 32 * (tiles + 1), 32 * (2 * tiles + 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.sem_seg_head(self.backbone(image))
