"""The first stage: a small CLIP on masked crops and captions."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from captions import CONTEXT, OBJECT_COUNT, SEEN_CLASSES, VOCABULARY, Bank, Encoder, bank
from loop import Run, train
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from scenes import Scenes, clip_crops, cut, soften
from torch import Tensor
from torch.nn import functional

from vocabseg.benchmarks.scenes.world import CLASSES, SEEN, render_scene
from vocabseg.export.model.clip import HEAD_WIDTH, MEAN, STD

PROMPT = ("a photo of a {}.", "There is a {} in the scene")

CROP_SIZE, EMBEDDING = 64, 128
TEMPERATURE = 40.0
_PLACE = {index: place for place, index in enumerate(SEEN_CLASSES)}


def make_clip(width: int = 16, layers: tuple[int, ...] = (1, 1, 1, 1), text_width: int = 64) -> CLIP:
    """CLIP in OpenAI's layout with its convolutional image encoder, small."""
    vision = CLIPVisionCfg(layers=layers, width=width, image_size=CROP_SIZE, head_width=HEAD_WIDTH)
    text = CLIPTextCfg(
        context_length=CONTEXT, vocab_size=VOCABULARY, width=text_width, heads=text_width // HEAD_WIDTH, layers=2
    )
    return CLIP(EMBEDDING, vision, text, quick_gelu=True)


def normalise_crops(crops: np.ndarray) -> Tensor:
    """(n, S, S, 3) in 0..255 -> (n, 3, S, S) as CLIP sees it."""
    mean, std = np.float32(MEAN) * 255, np.float32(STD) * 255
    return torch.from_numpy((crops - mean) / std).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def encode_text(clip: CLIP, ids: Tensor, ends: Tensor) -> Tensor:
    """Token ids (n, length) -> features (n, D) of length 1; the causal mask lets padding be cut off."""
    ids, ends = ids.to(clip.positional_embedding.device), ends.to(clip.positional_embedding.device)
    length = ids.shape[1]
    x = clip.token_embedding(ids) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    x = clip.ln_final(x)[torch.arange(len(ids), device=ids.device), ends]
    return functional.normalize(x @ clip.text_projection, dim=-1)


def contrastive_loss(features: Tensor, text: Tensor, bank: Bank, classes: Tensor, surfaces: Tensor) -> Tensor:
    """Image to text within every kind of caption, and text to image over the batch, with all captions that are true.

    features (n, D) and text (captions, D) of length 1, classes and surfaces (n,).
    """
    logits = TEMPERATURE * features @ text.T
    device = logits.device
    starts = bank.starts
    is_object = classes < OBJECT_COUNT
    names = torch.tensor([_PLACE[index] for index in classes.tolist()], device=device)
    parts = [logits[:, start:stop] for start, stop in pairwise(starts)]
    loss = functional.cross_entropy(parts[0], names)
    for part, target, weight in zip(parts[1:4], (classes % 10, classes // 10, surfaces), (0.5, 0.5, 0.15), strict=True):
        loss = loss + weight * functional.cross_entropy(part[is_object], target[is_object])
    detailed = torch.from_numpy(bank.detailed).to(device)
    true = torch.zeros_like(logits, dtype=torch.bool)
    true[torch.arange(len(names), device=device), names] = True
    for kind, target in enumerate((classes % 10, classes // 10, surfaces), start=1):
        values = torch.arange(parts[kind].shape[1], device=device)
        true[:, starts[kind] + values] = (target[:, None] == values) & is_object[:, None]
    true[:, starts[4] :] = (surfaces[:, None] == detailed[:, 0]) & (classes[:, None] == detailed[:, 1])
    matched = true.any(dim=0)
    over_images = logits[:, matched].log_softmax(dim=0)
    share = true[:, matched] / true[:, matched].sum(dim=0)
    return loss + 0.5 * -(share * over_images).sum(dim=0).mean()


def held_out_crops(seed: int, scenes: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Crops (n, S, S, 3) of validation scenes, with their true masks a little blurred, and their classes (n,)."""
    generator = np.random.default_rng([seed, 77])
    crops, classes = [], []
    fill = np.float32(MEAN) * 255
    for index in range(scenes):
        scene = render_scene(seed, "val", index)
        h, w = scene.labels.shape
        for segment in scene.segments:
            mask = soften((scene.segmentation == segment.id).astype(np.float32), (h, w), generator)
            crop = cut(scene.image.astype(np.float32), mask, fill, CROP_SIZE)
            if crop is not None:
                crops.append(crop)
                classes.append(segment.class_index)
    return np.stack(crops), np.array(classes)


@torch.no_grad()
def class_embeddings(clip: CLIP, encoder: Encoder, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Names -> (n, D) of length 1, the mean over templates, as the runtime embeds them."""
    parts = [encode_text(clip, *encoder([template.format(name) for name in names])) for template in templates]
    return functional.normalize(torch.stack(parts).mean(dim=0), dim=-1)


@torch.no_grad()
def crop_accuracy(clip: CLIP, text: Tensor, crops: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Percentage of crops given their class among all, for seen objects, unseen objects and backgrounds."""
    was_training = clip.training
    clip.eval()
    device = text.device
    parts = [clip.visual(normalise_crops(crops[at : at + 256]).to(device)) for at in range(0, len(crops), 256)]
    clip.train(was_training)
    right = (functional.normalize(torch.cat(parts), dim=-1) @ text.T).argmax(dim=1).cpu().numpy() == classes
    seen = np.array(SEEN)[classes]
    kinds = {"seen": seen & (classes < OBJECT_COUNT), "unseen": ~seen, "background": classes >= OBJECT_COUNT}
    return {kind: float(100 * right[which].mean()) for kind, which in kinds.items() if which.any()}


def train_clip(run: Run, scenes: list[Scenes], batch: int, learning_rate: float = 2e-3) -> list[float]:
    """Train the small CLIP and leave it at `run.output / clip.pt`."""
    torch.manual_seed(run.seed)
    clip = make_clip().to(device=run.device, memory_format=torch.channels_last).train()
    encoder = Encoder()
    fill = np.float32(MEAN) * 255
    crops, classes = held_out_crops(run.seed)

    def make_batch(generator: np.random.Generator, progress: float) -> tuple[Any, ...]:
        pixels, targets, surfaces = clip_crops(scenes, batch, CROP_SIZE, fill, generator)
        captions = bank(generator)
        return normalise_crops(pixels), torch.from_numpy(targets), torch.from_numpy(surfaces), captions

    def compute_loss(batch: tuple[Any, ...], progress: float) -> tuple[Tensor, dict[str, float]]:
        pixels, targets, surfaces = (part.to(run.device) for part in batch[:3])
        captions = batch[3]
        features = functional.normalize(clip.visual(pixels), dim=-1)
        text = encode_text(clip, *encoder(captions.texts))
        return contrastive_loss(features, text, captions, targets, surfaces), {}

    def evaluate() -> dict[str, float]:
        return crop_accuracy(clip, class_embeddings(clip, encoder, CLASSES, PROMPT), crops, classes)

    return train("clip", run, {"clip": clip}, learning_rate, make_batch, compute_loss, evaluate, 100)
