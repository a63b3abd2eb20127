"""The second stage: a small MaskFormer whose query embeddings are aligned with the text encoder of the first."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from backbone_stage import RegionHead, batch_maker, entropy, to_device, trainable
from captions import OBJECT_COUNT, SEEN_CLASSES
from loop import Run, train
from matching import class_costs, mask_costs, mask_losses, match
from scenes import Scenes
from torch import Tensor, nn
from torch.nn import functional

from vocabseg.benchmarks.scenes.world import CLASSES
from vocabseg.export.model.maskformer import ProposalNetwork, ProposalSizes, sine_position_embedding
from vocabseg.export.model.resnet import ResNetSizes

TEMPERATURE = 40.0
NON_OBJECT_WEIGHT = 0.1
MASK_WEIGHT, DICE_WEIGHT, ATTRIBUTE_WEIGHT = 20.0, 1.0, 0.5
DENSE_WEIGHT, REGION_WEIGHT = 1.0, 2.0


def demo_sizes(embedding: int) -> ProposalSizes:
    """The demo network: the published modules, 1.3 M parameters."""
    return ProposalSizes(
        backbone=ResNetSizes((24,), (1, 1, 2, 1), (24, 32, 64, 96), (64, 96, 160, 256), res5_dilation=2),
        pixel=32,
        mask=48,
        hidden=128,
        feed_forward=256,
        layers=3,
        queries=20,
        class_layers=(256, embedding),
        mask_layers=(128, 128, 48),
    )


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


def predictions(network: ProposalNetwork, images: Tensor) -> tuple[list[Tensor], Tensor, list[tuple[Tensor, Tensor]]]:
    """Backbone features, mask features, and every decoder layer's mask logits and query embeddings, the last first."""
    head = network.sem_seg_head
    features = network.backbone(images)
    mask_features = head.pixel_decoder(features)
    predictor = head.predictor
    memory = predictor.input_proj(features[3])
    position = sine_position_embedding(memory)
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
    """Train the proposal network from the backbone in `run.output / backbone.pt`; leaves it at proposals.pt beside it.

    texts: the text encoder's embeddings of the seen classes, the colours and the shapes, each (n, D) of length 1.
    """
    torch.manual_seed(run.seed)
    network, criterion = trainable(ProposalNetwork(sizes)), Criterion(sizes)
    learned = torch.load(run.output / "backbone.pt", weights_only=True, map_location="cpu")["modules"]
    network.backbone.load_state_dict(learned["backbone"])
    criterion.region.load_state_dict(learned["head"])
    return _train("proposals", run, network, criterion, texts, batch_maker(scenes, batch), learning_rate)


def polish_proposals(
    run: Run,
    scenes: list[Scenes],
    texts: tuple[Tensor, Tensor, Tensor],
    sizes: ProposalSizes,
    batch: int,
    learning_rate: float = 4e-4,
) -> list[float]:
    """Go on from proposals.pt at full size, with scenes it has not seen among them; leaves `run.output / polished.pt`.

    The first 3,000 scenes are known by heart after some twenty rounds.
    """
    torch.manual_seed(run.seed)
    network, criterion = trainable(ProposalNetwork(sizes)), Criterion(sizes)
    learned = torch.load(run.output / "proposals.pt", weights_only=True, map_location="cpu")["modules"]
    network.load_state_dict(learned["network"])
    criterion.load_state_dict(learned["criterion"])
    batches = batch_maker(scenes, batch, full_size=True)
    return _train("polished", run, network, criterion, texts, batches, learning_rate)


def _train(
    name: str,
    run: Run,
    network: ProposalNetwork,
    criterion: Criterion,
    texts: tuple[Tensor, Tensor, Tensor],
    batches: Callable[[np.random.Generator, float], tuple[Any, ...]],
    learning_rate: float,
) -> list[float]:
    network = network.to(device=run.device, memory_format=torch.channels_last).train()
    criterion = criterion.to(run.device)

    def compute_loss(parts: tuple[Any, ...], progress: float) -> tuple[Tensor, dict[str, float]]:
        return criterion(network, *to_device(parts, run.device), texts)

    modules = {"network": network, "criterion": criterion}
    return train(name, run, modules, learning_rate, batches, compute_loss)
