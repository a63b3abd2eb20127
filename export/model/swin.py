"""Swin backbones of the proposal network: attention within windows, shifted by half a window in every other block.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows". Module names are the
published state_dict keys. Maps are (B, h, w, C) between the blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vocabseg.export.model.attention import attend
from vocabseg.runtime.errors import CheckpointError

# Pixels of a side of a patch; further stages halve the map, so four stages end at stride 32.
PATCH, STAGES = 4, 4
SEPARATED = -100.0  # added to the scores of pixels that meet in a shifted window but are no neighbours, as published


@dataclass(frozen=True)
class SwinSizes:
    """Channels of the first stage, which each further one doubles; per stage the blocks and heads; the window's side.

    `feed_forward`: the inner width of a block's perceptron over its channels.
    """

    width: int
    blocks: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    feed_forward: float = 4.0

    @property
    def outer(self) -> tuple[int, ...]:
        """Channels of the four feature maps."""
        return tuple(self.width << stage for stage in range(STAGES))


def swin_sizes() -> SwinSizes:
    """Sizes of the published backbone, Swin-B."""
    return SwinSizes(width=128, blocks=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12)


def read_swin_sizes(shapes: Mapping[str, Sequence[int]]) -> SwinSizes:
    """Sizes read off the shapes of a backbone's tensors (no "backbone." prefix); KeyError if one is missing."""
    first = "layers.0.blocks.0."
    width = shapes["patch_embed.proj.weight"][0]
    tables = [shapes[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(STAGES)]
    return SwinSizes(
        width=width,
        blocks=tuple(
            len({key.split(".")[3] for key in shapes if key.startswith(f"layers.{stage}.blocks.")})
            for stage in range(STAGES)
        ),
        heads=tuple(table[1] for table in tables),
        window=(round(tables[0][0] ** 0.5) + 1) // 2,
        feed_forward=shapes[first + "mlp.fc1.weight"][0] / width,
    )


def check_swin(sizes: SwinSizes, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for a Swin of another kind: heads that share no width, or pixels in another order."""
    for width, heads in zip(sizes.outer, sizes.heads, strict=True):
        if not heads or width % heads:
            raise CheckpointError(f"a Swin stage of {width} channels has {heads} heads, which do not divide them")
    positions = relative_positions(sizes.window)
    for key, value in tensors.items():
        if key.endswith("relative_position_index") and not torch.equal(value, positions):
            raise CheckpointError(
                f"{key} does not number the pixels of a window row by row: these weights are of another network"
            )


def relative_positions(window: int) -> Tensor:
    """(T, T) int64, T pixels of a window: which row of the bias table is for this offset between two of its pixels."""
    y, x = (line.flatten() for line in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    rows, columns = (line[:, None] - line + window - 1 for line in (y, x))
    return rows * (2 * window - 1) + columns


@dataclass(frozen=True)
class Windows:
    """How a map (h, w) is cut: `down` x `across` windows, and what is added to the scores where they are shifted.

    `separation` is (windows, 1, T, T): pixels that meet in a window only because the shift wraps around are no
    neighbours. Nothing but the last row and the last column of windows wraps around.
    """

    h: int
    w: int
    down: int
    across: int
    separation: Tensor

    @classmethod
    def of(cls, h: int, w: int, side: int, device: torch.device) -> "Windows":
        """Windows of `side` pixels; those that are shifted begin half a side later."""
        down, across = (h + side - 1) // side, (w + side - 1) // side
        wrapped = torch.arange(side, device=device) >= side - side // 2
        rows, columns = (line.flatten() for line in torch.broadcast_tensors(wrapped[:, None], wrapped))
        rows, columns = (line[:, None] != line for line in (rows, columns))  # (T, T): on two sides of the wrap
        last_row = (torch.arange(down, device=device) == down - 1)[:, None, None, None]
        last_column = (torch.arange(across, device=device) == across - 1)[None, :, None, None]
        apart = (last_row & rows) | (last_column & columns)  # (down, across, T, T)
        return cls(h, w, down, across, torch.where(apart, SEPARATED, 0.0).flatten(0, 1)[:, None])


class WindowAttention(nn.Module):
    """Attention among the pixels of each window, with a bias by their offset."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))

    def forward(self, x: Tensor, separation: Tensor | None) -> Tensor:
        """(B, windows, T, C) -> the same; `separation` (windows, 1, T, T) is added to the scores."""
        qkv = self.qkv(x).unflatten(3, (3 * self.heads, -1)).transpose(2, 3)
        q, k, v = qkv.split(self.heads, dim=2)  # (B, windows, heads, T, C / heads) each
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        bias = bias if separation is None else bias + separation
        return self.proj(attend(q * q.shape[-1] ** -0.5, k, v, bias).transpose(2, 3).flatten(3))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Attention within windows, then a perceptron: (B, h, w, C) -> the same.

    The map is zero-padded to whole windows behind the normalisation, and the padding takes part in the attention. With
    `shift` the windows begin that many pixels later, and wrap around.
    """

    def __init__(self, width: int, heads: int, window: int, shift: int, inner: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, inner)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        side, down, across = self.window, windows.down, windows.across
        y = functional.pad(self.norm1(x), (0, 0, 0, across * side - windows.w, 0, down * side - windows.h))
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        batch, width = y.shape[0], y.shape[3]
        y = y.reshape(batch, down, side, across, side, width).transpose(2, 3)
        y = y.reshape(batch, down * across, side * side, width)
        y = self.attn(y, windows.separation if self.shift else None)
        y = y.reshape(batch, down, across, side, side, width).transpose(2, 3)
        y = y.reshape(batch, down * side, across * side, width)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + y[:, : windows.h, : windows.w]
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbouring pixels become one of twice the channels: (B, h, w, C) -> (B, h / 2, w / 2, 2 C)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, h, w, width = x.shape
        x = x.reshape(batch, h // 2, 2, w // 2, 2, width)
        # Stacked in the order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column).
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).reshape(batch, h // 2, w // 2, 4 * width)))


class PatchEmbedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    def __init__(self, sizes: SwinSizes, stage: int):
        super().__init__()
        width, self.window = sizes.outer[stage], sizes.window
        inner = round(width * sizes.feed_forward)
        self.blocks = nn.ModuleList(
            SwinBlock(width, sizes.heads[stage], sizes.window, index % 2 * (sizes.window // 2), inner)
            for index in range(sizes.blocks[stage])
        )
        self.downsample = PatchMerging(width) if stage < STAGES - 1 else None

    def forward(self, x: Tensor) -> Tensor:
        windows = Windows.of(x.shape[1], x.shape[2], self.window, x.device)
        for block in self.blocks:
            x = block(x, windows)
        return x


class Swin(nn.Module):
    """(B, 3, H, W) -> normalised features of the four stages, at strides 4, 8, 16, 32; H and W are multiples of 32."""

    def __init__(self, sizes: SwinSizes):
        super().__init__()
        self.patch_embed = PatchEmbedding(sizes.width)
        self.layers = nn.ModuleList(SwinStage(sizes, stage) for stage in range(STAGES))
        for stage, width in enumerate(sizes.outer):
            self.add_module(f"norm{stage}", nn.LayerNorm(width))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch_embed(image)
        features = []
        for stage, layer in enumerate(self.layers):
            x = layer(x)
            features.append(self.get_submodule(f"norm{stage}")(x).permute(0, 3, 1, 2))
            if layer.downsample is not None:
                x = layer.downsample(x)
        return features
