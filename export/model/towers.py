"""CLIP's image and text encoders as modules with one plain forward each, ready to be traced."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vocabseg.export.model.attention import ClassTokenAttention, SelfAttention, attend, merge_heads, split_heads
from vocabseg.runtime.errors import ConfigurationError


def resize_position(position: Tensor, grid: int) -> Tensor:
    """Fit a position embedding (1 + g * g, width) to a grid of another size: bicubic, not antialiased, as published."""
    native = round((position.shape[0] - 1) ** 0.5)
    if native == grid:
        return position
    spatial = position[1:].T.reshape(1, -1, native, native)
    spatial = F.interpolate(spatial, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([position[:1], spatial.flatten(2)[0].T])


class VitTower(nn.Module):
    """A vision transformer: crops (batch, 3, size, size) -> features (batch, D), not normalised.

    With `mask_prompts` (depth, patches or 1, width) it also takes which patches a region covers, patch_mask
    (batch, g, g) of zeros and ones: where that is 0, a patch's token is replaced by its learned one, at first and after
    each of the first depth - 1 blocks. The class token is left alone. Liang et al. 2023, "Open-Vocabulary Semantic
    Segmentation with Mask-adapted CLIP", section 3.3.
    """

    def __init__(self, visual: Any, crop_size: int, mask_prompts: Tensor | None = None):
        super().__init__()
        patch = _square(visual.patch_size)
        if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
            raise ConfigurationError(
                f"an image encoder with pooling {visual.pool_type!r} is not supported: use one with a class token"
            )
        position = resize_position(visual.positional_embedding.detach(), _grid(crop_size, patch)).clone()
        position[0] += visual.class_embedding.detach()
        self.register_buffer("position", position)
        self.patches = visual.conv1
        self.norm_before = visual.ln_pre
        self.blocks = visual.transformer.resblocks
        self.norm_after = visual.ln_post
        self.register_buffer("projection", visual.proj.detach())
        self.pool = visual.pool_type
        self.norm_first = self.pool == "avg" and not visual.final_ln_after_pool
        self.prompted = 0
        if mask_prompts is not None:
            _check_mask_prompts(mask_prompts, visual, crop_size)
            self.prompted = len(mask_prompts)
            everywhere = mask_prompts.detach().expand(-1, len(position) - 1, -1)
            self.register_buffer("mask_prompts", F.pad(everywhere, (0, 0, 1, 0)))  # none for the class token

    def forward(self, crops: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        # The class token is a zero row plus its row of `position`, so no operation depends on the batch size.
        x = F.pad(self.patches(crops).flatten(2).transpose(1, 2), (0, 0, 1, 0))
        kept = None if patch_mask is None else F.pad(patch_mask.flatten(1), (1, 0), value=1.0)[:, :, None]
        x = self.norm_before(self._prompt(x, kept, 0) + self.position)
        for index, block in enumerate(self.blocks, 1):
            x = self._prompt(block(x), kept, index)
        if self.norm_first:
            x = self.norm_after(x)
        x = x[:, 0] if self.pool == "tok" else x[:, 1:].mean(dim=1)
        if not self.norm_first:
            x = self.norm_after(x)
        return x @ self.projection

    def _prompt(self, x: Tensor, kept: Tensor | None, depth: int) -> Tensor:
        """Tokens (batch, 1 + patches, width) with learned ones where `kept` (batch, 1 + patches, 1) is 0."""
        if kept is None or depth >= self.prompted:
            return x
        return x * kept + self.mask_prompts[depth] * (1 - kept)


class ClassTokenBlock(nn.Module):
    """An open_clip residual block that computes its first token alone: (batch, tokens, width) -> (batch, 1, width)."""

    def __init__(self, block: Any):
        super().__init__()
        self.ln_1, self.attn, self.ls_1 = block.ln_1, ClassTokenAttention(block.attn), block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :1] + self.ls_1(self.attn(self.ln_1(x)))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def prune_last_block(tower: nn.Module) -> nn.Module:
    """The same features from fewer operations: a vision transformer's last block computes the class token alone.

    With 12 blocks that saves 7 % of all operations. Other towers are returned unchanged; modules are shared.
    """
    last = tower.blocks[-1] if isinstance(tower, VitTower) and tower.pool == "tok" else None
    if last is None or not isinstance(last.attn, SelfAttention):
        return tower
    shortened = copy.copy(tower)
    shortened._modules = {**tower._modules, "blocks": nn.ModuleList([*tower.blocks[:-1], ClassTokenBlock(last)])}
    return shortened.eval()


class ResNetTower(nn.Module):
    """CLIP's ResNet with attention pooling: crops (batch, 3, size, size) -> features (batch, D), not normalised."""

    def __init__(self, visual: Any, crop_size: int):
        super().__init__()
        pool = visual.attnpool
        self.stem = nn.Sequential(
            visual.conv1, visual.bn1, visual.act1, visual.conv2, visual.bn2, visual.act2,
            visual.conv3, visual.bn3, visual.act3, visual.avgpool,
        )  # fmt: skip
        self.stages = nn.Sequential(visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        position = resize_position(pool.positional_embedding.detach(), _grid(crop_size, 32))
        self.register_buffer("position_mean", position[:1].clone())
        self.register_buffer("position_grid", position[1:].clone())
        self.query, self.key, self.value, self.out = pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj
        self.heads = pool.num_heads
        self.scale = (self.query.out_features // self.heads) ** -0.5
        self.fused_attention = False

    def forward(self, crops: Tensor) -> Tensor:
        grid = self.stages(self.stem(crops)).flatten(2).transpose(1, 2)
        mean = grid.mean(dim=1, keepdim=True) + self.position_mean
        tokens = torch.cat([mean, grid + self.position_grid], dim=1)
        query = split_heads(self.query(mean) * self.scale, self.heads)  # only the mean token's output is used
        key, value = split_heads(self.key(tokens), self.heads), split_heads(self.value(tokens), self.heads)
        return self.out(merge_heads(attend(query, key, value, fused=self.fused_attention)))[:, 0]


class TimmTower(nn.Module):
    """An image encoder that open_clip takes from timm: crops (batch, 3, size, size) -> features (batch, D)."""

    def __init__(self, visual: Any, crop_size: int):
        super().__init__()
        native = _square(visual.image_size)
        if crop_size != native:
            raise ConfigurationError(
                f"crop size {crop_size} does not fit this image encoder: set region.crop_size={native}"
            )
        self.visual = visual

    def forward(self, crops: Tensor) -> Tensor:
        return self.visual(crops)


class TextTower(nn.Module):
    """A text encoder: token ids (batch, context) and the end token's place (batch,) -> features (batch, D).

    `extra_rows` (rows, width) are appended to the embedding table, so that learned prompt vectors have token ids.
    """

    def __init__(self, text: Any, causal: bool, extra_rows: Tensor | None = None):
        super().__init__()
        table = text.token_embedding.weight.detach()
        if extra_rows is not None and len(extra_rows):
            table = torch.cat([table, extra_rows.detach().to(table)])
        context = text.positional_embedding.shape[0]
        self.register_buffer("embedding", table)
        self.register_buffer("position", text.positional_embedding.detach())
        # Four axes, the only form of Attention's mask that TensorRT's parser takes.
        mask = torch.full((1, 1, context, context), float("-inf")).triu(1)
        self.register_buffer("mask", mask if causal else None)
        self.register_buffer("places", torch.arange(context))
        self.blocks = text.transformer.resblocks
        self.norm = text.ln_final
        projection = text.text_projection
        if isinstance(projection, nn.Linear):
            self.projection: nn.Module | None = projection
        else:
            self.projection = None
            self.register_buffer("projection_matrix", None if projection is None else projection.detach())

    def forward(self, token_ids: Tensor, eot_index: Tensor) -> Tensor:
        x = F.embedding(token_ids, self.embedding) + self.position
        for block in self.blocks:
            x = block(x, attn_mask=self.mask)
        # A one-hot product picks the end token's row: exact, and unlike a gather it needs no batch size.
        at_end = (self.places == eot_index[:, None]).to(x.dtype)
        x = self.norm((at_end[:, None] @ x)[:, 0])
        if self.projection is not None:
            return self.projection(x)
        return x if self.projection_matrix is None else x @ self.projection_matrix


def image_tower(visual: Any, crop_size: int, mask_prompts: Tensor | None = None) -> nn.Module:
    """The traceable form of an open_clip image encoder for crops of one size; ConfigurationError if there is none.

    `mask_prompts` are a vision transformer's alone.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if mask_prompts is not None and isinstance(visual, VisionTransformer):
        return VitTower(visual, crop_size, mask_prompts).eval()
    for kind, tower in ((VisionTransformer, VitTower), (ModifiedResNet, ResNetTower), (TimmModel, TimmTower)):
        if isinstance(visual, kind):
            return tower(visual, crop_size).eval()
    raise ConfigurationError(
        f"an image encoder of type {type(visual).__name__} is not supported: use an open_clip model"
    )


def _check_mask_prompts(mask_prompts: Tensor, visual: Any, crop_size: int) -> None:
    native = _square(visual.image_size)
    if crop_size != native:
        raise ConfigurationError(
            f"crop size {crop_size} does not fit this image encoder's mask prompts: set region.crop_size={native}, or "
            "leave them out (--set clip.mask_prompts=false)"
        )


def _square(size: int | tuple[int, int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ConfigurationError(f"an image encoder for {height}x{width} is not supported: use one for square crops")
    return height


def _grid(crop_size: int, stride: int) -> int:
    if crop_size < stride or crop_size % stride:
        raise ConfigurationError(
            f"crop size {crop_size} does not fit this image encoder: region.crop_size must be a multiple of {stride}"
        )
    return crop_size // stride
