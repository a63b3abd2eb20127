"""The second stage: a small MaskFormer whose query embeddings are aligned with the text encoder of the first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from captions import OBJECT_COUNT, SEEN_CLASSES
from loop import Run, train
from matching import class_costs, mask_costs, mask_losses, match
from scenes import Scenes, network_batch
from torch import Tensor, nn
from torch.nn import functional

from vocabseg.benchmarks.datasets.world import CLASSES
from vocabseg.export.maskformer import Attention, ProposalNetwork, ProposalSizes, sine_position_embedding
from vocabseg.export.resnet import FrozenBatchNorm2d, ResNetSizes

MEAN, STD = np.float32((123.675, 116.28, 103.53)), np.float32((58.395, 57.12, 57.375))
TEMPERATURE = 40.0
NON_OBJECT_WEIGHT = 0.1
MASK_WEIGHT, DICE_WEIGHT, ATTRIBUTE_WEIGHT = 20.0, 1.0, 0.5
DENSE_WEIGHT, REGION_WEIGHT = 1.0, 2.0
EARLY_SIZES = {(192, 256): (128, 160), (192, 192): (128, 128), (256, 192): (160, 128)}
LATE_SIZES = {(192, 256): (160, 224), (192, 192): (160, 160), (256, 192): (224, 160)}
LATE = 0.6  # of the training; before it the pictures are smaller


def demo_sizes(embedding: int) -> ProposalSizes:
    """The demo network: the published modules, 1.3 M parameters."""
    return ProposalSizes(
        backbone=ResNetSizes((24,), (1, 1, 2, 1), (24, 32, 64, 96), (64, 96, 160, 256)),
        pixel=32,
        mask=48,
        hidden=128,
        feed_forward=256,
        layers=3,
        queries=20,
        class_layers=(256, embedding),
        mask_layers=(128, 128, 48),
    )


def trainable(sizes: ProposalSizes) -> ProposalNetwork:
    """The proposal network with batch normalisation that learns, and weights to start from."""
    network = ProposalNetwork(sizes)
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
    for stage in ("res2", "res3", "res4", "res5"):
        for block in network.backbone.get_submodule(stage):
            nn.init.constant_(block.conv3.norm.weight, 0.2)  # a block starts close to its shortcut
    return network


def entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy over what is labelled (not -100); 0 where nothing is, as in a batch without objects."""
    return functional.cross_entropy(logits, wanted, reduction="sum") / (wanted != -100).sum().clamp(min=1)


class DenseHead(nn.Module):
    """Only for training: every pixel says its colour, shape, background and the way to its segment's centre.

    The masks are learned several times faster when the mask features know what they look at.
    """

    def __init__(self, width: int):
        super().__init__()
        self.backgrounds = len(CLASSES) - OBJECT_COUNT
        self.layer = nn.Conv2d(width, 10 + 10 + 1 + self.backgrounds + 2, 1)

    def forward(self, features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
        """features (B, C, h, w), labels (B, h, w) class or -1, centres (B, 2, h, w) offsets -> loss."""
        y = self.layer(features)
        is_object = (labels >= 0) & (labels < OBJECT_COUNT)
        colour, shape, other, way = y.split([10, 10, 1 + self.backgrounds, 2], dim=1)
        missing = torch.full_like(labels, -100)
        loss = entropy(colour, torch.where(is_object, labels % 10, missing))
        loss = loss + entropy(shape, torch.where(is_object, labels // 10, missing))
        kind = torch.where(is_object, 0, torch.where(labels < 0, missing, labels - OBJECT_COUNT + 1))
        loss = loss + entropy(other, kind)
        error = functional.smooth_l1_loss(way, centres, reduction="none", beta=0.1).mean(dim=1)
        return loss + 2 * (error * is_object).sum() / is_object.sum().clamp(min=1)


class RegionHead(nn.Module):
    """Only for training: what the backbone sees within a segment's true mask says the object's colour and shape.

    Without it the backbone learns colours at once and shapes hardly at all: no loss asks for them at the right place.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        width = sum(channels)
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 20))

    def forward(self, features: Sequence[Tensor], classes: list[Tensor], masks: list[Tensor]) -> Tensor:
        """features (B, C, h, w) at strides 8, 16 and 32, classes (n,) and masks (n, H / 4, W / 4) per image -> loss."""
        pooled = []
        for at, covers in enumerate(masks):
            parts = []
            for level, feature in enumerate(features, start=1):
                share = functional.avg_pool2d(covers[:, None], 2**level)[:, 0].flatten(1)
                parts.append(share / share.sum(dim=1, keepdim=True).clamp(min=1e-6) @ feature[at].flatten(1).T)
            pooled.append(torch.cat(parts, dim=1))
        wanted = torch.cat(classes)
        objects = wanted < OBJECT_COUNT
        colour, shape = self.layers(torch.cat(pooled)[objects]).split(10, dim=1)
        return entropy(colour, wanted[objects] % 10) + entropy(shape, wanted[objects] // 10)


def predictions(network: ProposalNetwork, images: Tensor) -> tuple[list[Tensor], Tensor, list[tuple[Tensor, Tensor]]]:
    """Backbone features, mask features, and every decoder layer's mask logits and query embeddings, the last first."""
    head = network.sem_seg_head
    features = network.backbone(images)
    mask_features = head.pixel_decoder(features)
    predictor = head.predictor
    memory = predictor.input_proj(features[3])
    position = sine_position_embedding(memory.shape[2], memory.shape[3], memory.shape[1], memory.device)
    memory, position = (x.flatten(2).transpose(1, 2) for x in (memory, position))
    queries = predictor.query_embed.weight.unsqueeze(0).expand(len(images), -1, -1)
    decoder = predictor.transformer.decoder
    x, outputs = torch.zeros_like(queries), []
    for layer in decoder.layers:
        x = layer(x, queries, memory, position)
        y = decoder.norm(x)
        masks = predictor.mask_embed(y) @ mask_features.flatten(2)
        outputs.append((masks.unflatten(2, mask_features.shape[2:]), predictor.class_embed(y)))
    return features, mask_features, outputs[::-1]


class Criterion(nn.Module):
    """The published losses (Cheng et al. 2021, Xu et al. 2022) with Hungarian matching, after every decoder layer.

    Holds what is learned beside the network: the non-object embedding, and the two heads of the training.
    """

    def __init__(self, sizes: ProposalSizes):
        super().__init__()
        self.non_object_embedding = nn.Parameter(torch.randn(1, sizes.class_layers[-1]) * 0.1)
        self.dense = DenseHead(sizes.mask)
        self.region = RegionHead(sizes.backbone.outer[1:])

    def forward(
        self,
        network: ProposalNetwork,
        images: Tensor,
        classes: list[Tensor],
        masks: list[Tensor],
        padding: Tensor,
        texts: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, dict[str, float]]:
        """texts: embeddings of the seen classes, colours and shapes, each (n, D) of length 1."""
        features, mask_features, outputs = predictions(network, images)
        names = torch.cat([texts[0], functional.normalize(self.non_object_embedding, dim=-1)])
        place = {index: at for at, index in enumerate(SEEN_CLASSES)}
        device = images.device
        targets = [torch.tensor([place[index] for index in present.tolist()], device=device) for present in classes]
        total = torch.zeros((), device=device)
        figures: dict[str, float] = {}
        for number, (logits, embeddings) in enumerate(outputs):
            unit = functional.normalize(embeddings, dim=-1)
            scores = TEMPERATURE * unit @ names.T
            with torch.no_grad():
                pairs = [
                    match(class_costs(scores[at], targets[at]) + mask_costs(logits[at], masks[at], ~padding[at]))
                    for at in range(len(images))
                ]
            wanted = torch.full(scores.shape[:2], len(SEEN_CLASSES), device=device)
            for at, (rows, columns) in enumerate(pairs):
                wanted[at, rows] = targets[at][columns]
            weight = torch.ones(len(SEEN_CLASSES) + 1, device=device)
            weight[-1] = NON_OBJECT_WEIGHT
            naming = functional.cross_entropy(scores.flatten(0, 1), wanted.flatten(), weight)
            chosen = torch.cat([logits[at, rows] for at, (rows, _) in enumerate(pairs)])
            truth = torch.cat([masks[at][columns] for at, (_, columns) in enumerate(pairs)])
            valid = torch.cat([(~padding[at]).expand(len(rows), -1, -1) for at, (rows, _) in enumerate(pairs)])
            focal, dice = mask_losses(chosen, truth, valid)
            attributes = self._attributes(unit, classes, pairs, texts)
            total = total + naming + MASK_WEIGHT * focal + DICE_WEIGHT * dice + ATTRIBUTE_WEIGHT * attributes
            if number == 0:
                overlap = ((chosen > 0) & (truth > 0.5)).flatten(1).sum(1) / (
                    ((chosen > 0) | (truth > 0.5)).flatten(1).sum(1).clamp(min=1)
                )
                known = wanted < len(SEEN_CLASSES)
                right = (scores[known][:, :-1].argmax(dim=1) == wanted[known]).float().mean()
                figures = {
                    "naming": naming.item(), "focal": focal.item(), "dice": dice.item(),
                    "overlap": overlap.mean().item(), "right": right.item(),
                }  # fmt: skip
        dense = self.dense(mask_features, *dense_targets(classes, masks, padding))
        region = self.region(features[1:], classes, masks)
        total = total + DENSE_WEIGHT * dense + REGION_WEIGHT * region
        return total, {**figures, "dense": dense.item(), "region": region.item()}

    @staticmethod
    def _attributes(
        unit: Tensor, classes: list[Tensor], pairs: list[tuple[Tensor, Tensor]], texts: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """The colour and the shape of matched objects on their own, which an unseen pair is made of."""
        embeddings = torch.cat([unit[at, rows] for at, (rows, _) in enumerate(pairs)])
        wanted = torch.cat([classes[at][columns] for at, (_, columns) in enumerate(pairs)])
        objects = wanted < OBJECT_COUNT
        colour = TEMPERATURE * embeddings[objects] @ texts[1].T
        shape = TEMPERATURE * embeddings[objects] @ texts[2].T
        return entropy(colour, wanted[objects] % 10) + entropy(shape, wanted[objects] // 10)


@torch.no_grad()
def dense_targets(classes: list[Tensor], masks: list[Tensor], padding: Tensor) -> tuple[Tensor, Tensor]:
    """Per cell the class or -1 (B, h, w), and the way to the segment's centre (B, 2, h, w) in units of 16 cells."""
    h, w = padding.shape[1:]
    device = padding.device
    labels = torch.full(padding.shape, -1, device=device)
    centres = torch.zeros(len(classes), 2, h, w, device=device)
    y = torch.arange(h, dtype=torch.float32, device=device)[:, None]
    x = torch.arange(w, dtype=torch.float32, device=device)[None]
    for at, (present, covers) in enumerate(zip(classes, masks, strict=True)):
        share, best = covers.max(dim=0)
        inside = (share > 0.5) & ~padding[at]
        labels[at][inside] = present[best][inside]
        area = covers.sum(dim=(1, 2))
        middle_y, middle_x = (covers * y).sum(dim=(1, 2)) / area, (covers * x).sum(dim=(1, 2)) / area
        centres[at, 0], centres[at, 1] = (middle_y[best] - y) / 16, (middle_x[best] - x) / 16
    return labels, centres


def train_proposals(
    run: Run,
    scenes: list[Scenes],
    texts: tuple[Tensor, Tensor, Tensor],
    sizes: ProposalSizes,
    batch: int,
    learning_rate: float = 1e-3,
) -> list[float]:
    """Train the proposal network and leave it at `run.output / proposals.pt`.

    texts: the text encoder's embeddings of the seen classes, the colours and the shapes, each (n, D) of length 1.
    """
    torch.manual_seed(run.seed)
    network = trainable(sizes).to(device=run.device, memory_format=torch.channels_last).train()
    criterion = Criterion(sizes).to(run.device)
    weights = np.array([len(group.segments) for group in scenes], float)

    def make_batch(generator: np.random.Generator, progress: float) -> tuple[Any, ...]:
        group = scenes[generator.choice(len(scenes), p=weights / weights.sum())]
        table = EARLY_SIZES if progress < LATE else LATE_SIZES
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

    def compute_loss(parts: tuple[Any, ...], progress: float) -> tuple[Tensor, dict[str, float]]:
        pixels, padding = (part.to(run.device) for part in parts[::3])
        classes, masks = ([part.to(run.device) for part in listed] for listed in parts[1:3])
        return criterion(network, pixels, classes, masks, padding, texts)

    return train(
        "proposals", run, {"network": network, "criterion": criterion}, learning_rate, make_batch, compute_loss
    )
