"""ResNet backbones of the proposal network: R50, and R101c (deep stem, multi-grid in the last stage).

Module names are the published state_dict keys. He et al. 2016; the deep stem and the multi-grid are DeepLab's (Chen et
al. 2017). The stride of a block is on its 3x3 convolution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGES = ("res2", "res3", "res4", "res5")
# Dilations of the three res5 blocks of R101c; the weights do not show them, so the kind of stem decides.
MULTI_GRID = (1, 2, 4)


@dataclass(frozen=True)
class ResNetSizes:
    """Channels of the stem (one convolution, or three: deep); per stage the blocks, inner and output channels.

    With `res5_dilation` 2 the last stage keeps stride 16 and dilates its 3x3 convolutions; the weights do not show it.
    """

    stem: tuple[int, ...]
    blocks: tuple[int, ...]
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    res5_dilation: int = 1

    @property
    def deep_stem(self) -> bool:
        return len(self.stem) == 3


def resnet_sizes(name: str) -> ResNetSizes:
    """Sizes of a published backbone: "r50" or "r101c"."""
    inner, outer = (64, 128, 256, 512), (256, 512, 1024, 2048)
    if name == "r101c":
        return ResNetSizes((64, 64, 128), (3, 4, 23, 3), inner, outer)
    return ResNetSizes((64,), (3, 4, 6, 3), inner, outer)


def read_resnet_sizes(shapes: Mapping[str, Sequence[int]]) -> ResNetSizes:
    """Sizes read off the shapes of a backbone's tensors (no "backbone." prefix); KeyError if one is missing."""
    stem = [shapes["stem.conv1.weight"][0]]
    if "stem.conv2.weight" in shapes:
        stem += [shapes["stem.conv2.weight"][0], shapes["stem.conv3.weight"][0]]
    blocks = tuple(len({key.split(".")[1] for key in shapes if key.startswith(f"{stage}.")}) for stage in STAGES)
    inner = tuple(shapes[f"{stage}.0.conv1.weight"][0] for stage in STAGES)
    outer = tuple(shapes[f"{stage}.0.conv3.weight"][0] for stage in STAGES)
    return ResNetSizes(tuple(stem), blocks, inner, outer)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics; unlike torch's it has no `num_batches_tracked`."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


class NormalisedConv2d(nn.Conv2d):
    """A convolution without bias, followed by the normalisation that is its child `norm`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: nn.Module, stride: int = 1, dilation: int = 1):
        padding = dilation * (kernel // 2)
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=False)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> NormalisedConv2d:
    return NormalisedConv2d(inputs, outputs, kernel, FrozenBatchNorm2d(outputs), stride, dilation)


class Stem(nn.Module):
    """One 7x7 convolution or three 3x3 ones, then max pooling: (B, 3, H, W) -> (B, channels, H/4, W/4)."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.deep = len(channels) == 3
        self.conv1 = _conv(3, channels[0], 3 if self.deep else 7, stride=2)
        if self.deep:
            self.conv2 = _conv(channels[0], channels[1], 3)
            self.conv3 = _conv(channels[1], channels[2], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        if self.deep:
            x = self.conv3(self.conv2(x).relu()).relu()
        return functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut, which is projected if the shapes differ."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, dilation: int):
        super().__init__()
        self.shortcut = _conv(inputs, outputs, 1, stride=stride) if inputs != outputs or stride != 1 else None
        self.conv1 = _conv(inputs, inner, 1)
        self.conv2 = _conv(inner, inner, 3, stride=stride, dilation=dilation)
        self.conv3 = _conv(inner, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()


class ResNet(nn.Module):
    """(B, 3, H, W) -> features of the stages res2..res5 at strides 4, 8, 16, 32; H and W are multiples of 32.

    A dilated res5 stays at stride 16.
    """

    def __init__(self, sizes: ResNetSizes):
        super().__init__()
        self.stem = Stem(sizes.stem)
        channels = sizes.stem[-1]
        for stage, name in enumerate(STAGES):
            dilations = [1] * sizes.blocks[stage]
            if sizes.deep_stem and name == "res5":
                dilations = [MULTI_GRID[index % len(MULTI_GRID)] for index in range(sizes.blocks[stage])]
            if name == "res5":
                dilations = [dilation * sizes.res5_dilation for dilation in dilations]
            keeps_size = name == "res2" or (name == "res5" and sizes.res5_dilation > 1)
            blocks = []
            for index, dilation in enumerate(dilations):
                stride = 2 if index == 0 and not keeps_size else 1
                blocks.append(Bottleneck(channels, sizes.inner[stage], sizes.outer[stage], stride, dilation))
                channels = sizes.outer[stage]
            self.add_module(name, nn.Sequential(*blocks))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        features = []
        for name in STAGES:
            x = self.get_submodule(name)(x)
            features.append(x)
        return features
