"""The backbone learns alone at first, as the published one did on ImageNet: colours and shapes within true masks.

A step costs half of one of the whole network, and queries that start from features which know shapes find them sooner.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from captions import OBJECT_COUNT
from loop import Run, train
from scenes import Scenes, network_batch
from torch import Tensor, nn
from torch.nn import functional

from vocabseg.export.model.maskformer import Attention, ProposalSizes
from vocabseg.export.model.resnet import FrozenBatchNorm2d, ResNet

Module = TypeVar("Module", bound=nn.Module)

MEAN, STD = np.float32((123.675, 116.28, 103.53)), np.float32((58.395, 57.12, 57.375))
# Up to which share of the training a scene of which size is shown at which: small at first, since that is quick.
SIZES = (
    (0.6, {(192, 256): (128, 160), (192, 192): (128, 128), (256, 192): (160, 128)}),
    (0.8, {(192, 256): (160, 224), (192, 192): (160, 160), (256, 192): (224, 160)}),
    (1.0, {(192, 256): (192, 256), (192, 192): (192, 192), (256, 192): (256, 192)}),
)


def trainable(network: Module) -> Module:
    """`network` (or its backbone) with batch normalisation that learns, and weights to start from."""
    for module in list(network.modules()):
        norm = getattr(module, "norm", None)
        if isinstance(norm, FrozenBatchNorm2d):
            module.norm = nn.BatchNorm2d(norm.weight.shape[0])
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, Attention):
            for name in ("query", "key", "value"):
                nn.init.xavier_uniform_(module.get_parameter(f"{name}_weight"))
    return network


def entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy over what is labelled (not -100); 0 where nothing is, as in a batch without objects."""
    return functional.cross_entropy(logits, wanted, reduction="sum") / (wanted != -100).sum().clamp(min=1)


class RegionHead(nn.Module):
    """Only for training: what the backbone sees within a segment's true mask says the object's colour and shape.

    Without it the backbone learns colours at once and shapes hardly at all: no loss asks for them at the right place.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        width = sum(channels)
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 20))

    def forward(self, features: Sequence[Tensor], classes: list[Tensor], masks: list[Tensor]) -> Tensor:
        """features (B, C, h, w) at strides of 8 and more, classes (n,) and masks (n, H / 4, W / 4) each -> loss."""
        pooled = []
        for at, covers in enumerate(masks):
            parts = []
            for feature in features:
                share = functional.avg_pool2d(covers[:, None], covers.shape[1] // feature.shape[2])[:, 0].flatten(1)
                parts.append(share / share.sum(dim=1, keepdim=True).clamp(min=1e-6) @ feature[at].flatten(1).T)
            pooled.append(torch.cat(parts, dim=1))
        wanted = torch.cat(classes)
        objects = wanted < OBJECT_COUNT
        colour, shape = self.layers(torch.cat(pooled)[objects]).split(10, dim=1)
        return entropy(colour, wanted[objects] % 10) + entropy(shape, wanted[objects] // 10)


def batch_maker(
    scenes: list[Scenes], batch: int, full_size: bool = False
) -> Callable[[np.random.Generator, float], tuple[Any, ...]]:
    """What the training loop calls for a batch: images, classes and masks per image, and the padding at stride 4."""
    weights = np.array([len(group.segments) for group in scenes], float)

    def make_batch(generator: np.random.Generator, progress: float) -> tuple[Any, ...]:
        group = scenes[generator.choice(len(scenes), p=weights / weights.sum())]
        table = SIZES[-1][1] if full_size else next(table for until, table in SIZES if progress <= until)
        size = table[group.images.shape[1:3]]
        chosen = generator.integers(len(group.segments), size=batch)
        images, padding, classes, masks = network_batch(group, chosen, size, generator)
        normalised = (images - MEAN) / STD
        normalised[padding] = 0
        pixels = torch.from_numpy(normalised).permute(0, 3, 1, 2)  # already channels last
        return (
            pixels,
            [torch.from_numpy(present) for present in classes],
            [torch.from_numpy(covers) for covers in masks],
            torch.from_numpy(padding[:, 2::4, 2::4]),
        )

    return make_batch


def to_device(parts: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """A batch's tensors and lists of tensors on `device`."""
    return tuple(
        [part.to(device) for part in listed] if isinstance(listed, list) else listed.to(device) for listed in parts
    )


def train_backbone(
    run: Run, scenes: list[Scenes], sizes: ProposalSizes, batch: int, learning_rate: float = 1e-3
) -> list[float]:
    """Train the backbone alone and leave it at `run.output / backbone.pt`, with the head that asked it."""
    torch.manual_seed(run.seed)
    backbone = trainable(ResNet(sizes.backbone)).to(device=run.device, memory_format=torch.channels_last).train()
    head = RegionHead(sizes.backbone.outer[1:]).to(run.device)

    def compute_loss(parts: tuple[Any, ...], progress: float) -> tuple[Tensor, dict[str, float]]:
        pixels, classes, masks, _ = to_device(parts, run.device)
        return head(backbone(pixels)[1:], classes, masks), {}

    modules = {"backbone": backbone, "head": head}
    return train("backbone", run, modules, learning_rate, batch_maker(scenes, batch), compute_loss)
