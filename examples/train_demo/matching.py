"""Hungarian matching of proposals and segments, and the losses of the masks (Cheng et al. 2021)."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin et al. 2017)
CLASS_COST, MASK_COST, DICE_COST = 1.0, 20.0, 1.0


def match(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Costs (N, segments) -> indices of proposals and of their segments, one to one, at the least cost."""
    rows, columns = linear_sum_assignment(costs.cpu().numpy())
    return torch.from_numpy(rows).to(costs.device), torch.from_numpy(columns).to(costs.device)


def class_costs(scores: Tensor, targets: Tensor) -> Tensor:
    """Scores (N, classes + 1) and the segments' classes (n,) -> (N, n)."""
    return -CLASS_COST * scores.softmax(dim=-1)[:, targets]


def mask_costs(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Logits (N, h, w), masks (n, h, w) in 0..1 and the cells that count (h, w) -> (N, n)."""
    x, t = logits[:, valid], masks[:, valid]
    p = x.sigmoid()
    positive = ALPHA * (1 - p) ** GAMMA * functional.softplus(-x)
    negative = (1 - ALPHA) * p**GAMMA * functional.softplus(x)
    focal = (positive @ t.T + negative @ (1 - t).T) / x.shape[1]
    dice = 1 - (2 * p @ t.T + 1) / (p.sum(dim=1)[:, None] + t.sum(dim=1)[None] + 1)
    return MASK_COST * focal + DICE_COST * dice


def mask_losses(logits: Tensor, masks: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of matched pairs, each (n, h, w), over the valid cells.

    A cell at a segment's edge is wanted to be as high as the share of it that is covered; for cells that are covered
    fully or not at all the focal loss is the published one.
    """
    counts = valid.float()
    p = logits.sigmoid()
    weight = ALPHA * masks + (1 - ALPHA) * (1 - masks)
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    focal = weight * (masks - p).abs() ** GAMMA * entropy
    focal = (focal * counts).flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1)
    p = p * counts
    dice = 1 - (2 * (p * masks).flatten(1).sum(1) + 1) / (p.flatten(1).sum(1) + masks.flatten(1).sum(1) + 1)
    return focal.mean(), dice.mean()
