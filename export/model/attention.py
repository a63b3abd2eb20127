"""Attention as a few large operations, so that a traced transformer is a short, readable graph."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, fused: bool = False) -> Tensor:
    """softmax(query @ key^T + mask) @ value on (batch, heads, tokens, width); the query is already scaled.

    `fused` writes one `Attention` operation (opset 23) instead of MatMul, Softmax, MatMul.
    """
    if fused:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    scores = query @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1) @ value


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(batch, tokens, heads * width) -> (batch, heads, tokens, width)."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(batch, heads, tokens, width) -> (batch, tokens, heads * width)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


class SelfAttention(nn.Module):
    """What an `nn.MultiheadAttention(batch_first=True)` computes when query, key and value are the same tokens.

    The scale 1 / sqrt(head width) is folded into the query's weights, which is exact for powers of four such as 64.
    """

    def __init__(self, source: nn.MultiheadAttention):
        super().__init__()
        self.heads = source.num_heads
        self.fused_attention = False
        width = source.embed_dim
        scale = torch.ones(3 * width)
        scale[:width] = source.head_dim**-0.5
        bias = source.in_proj_bias
        self.qkv = _linear(
            source.in_proj_weight.detach() * scale[:, None], None if bias is None else bias.detach() * scale
        )
        self.out_proj = source.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """(batch, tokens, width) -> (the same, None); key and value are there for the signature."""
        qkv = split_heads(self.qkv(query), 3 * self.heads)
        q, k, v = qkv.split(self.heads, dim=1)
        return self.out_proj(merge_heads(attend(q, k, v, attn_mask, self.fused_attention))), None


class ClassTokenAttention(nn.Module):
    """What `SelfAttention` computes for the first token, the class token: one query, all keys and values."""

    def __init__(self, source: SelfAttention):
        super().__init__()
        self.heads = source.heads
        self.fused_attention = False
        width = source.out_proj.in_features
        weight, bias = source.qkv.weight.detach(), source.qkv.bias
        self.query, self.key_value = (
            _linear(weight[rows].clone(), None if bias is None else bias.detach()[rows].clone())
            for rows in (slice(None, width), slice(width, None))
        )
        self.out_proj = source.out_proj

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> (batch, 1, width)."""
        query = split_heads(self.query(tokens[:, :1]), self.heads)
        key, value = split_heads(self.key_value(tokens), 2 * self.heads).split(self.heads, dim=1)
        return self.out_proj(merge_heads(attend(query, key, value, fused=self.fused_attention)))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer with these tensors as its parameters: weight (outputs, inputs), bias (outputs,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def rewrite_attention(model: nn.Module) -> None:
    """Replace the self-attention of every open_clip residual block in `model` by `SelfAttention`, in place."""
    from open_clip.transformer import ResidualAttentionBlock

    for block in model.modules():
        plain = isinstance(block, ResidualAttentionBlock) and not hasattr(block, "ln_1_kv")
        if plain and isinstance(block.attn, nn.MultiheadAttention):
            block.attn = SelfAttention(block.attn)


def use_fused_attention(model: nn.Module, fused: bool) -> None:
    """Choose how every attention in `model` is exported: one fused operation, or matrix products and a softmax."""
    for module in model.modules():
        for name in ("fused_attention", "fused_attn"):  # this package's modules; timm's
            if hasattr(module, name):
                setattr(module, name, fused)
