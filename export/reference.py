"""The whole two-stage method in plain PyTorch, float32: what every faster implementation is compared with.

Xu et al. 2022, "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained Vision-language Model", as
the published code runs it. Nothing here is shared with the runtime's kernels, nor done to save time or memory.
Images given together are one padded batch; as in the published code, an image's result then depends on the others.

Letters in shapes: N proposals, V of them valid (non-empty mask), K classes, D width of embeddings, (h, w) resized
image, (Hp, Wp) padded, (H, W) original.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vocabseg.export.checkpoint.load import LearnedPrompt, Model
from vocabseg.export.configuration import Configuration
from vocabseg.export.model.clip import ClipModel
from vocabseg.runtime.bundle.sections import InputSection, RegionSection
from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.text.prompts import PROMPTS

DOT = 269  # CLIP's token of "."
TEXT_BATCH = 128


@dataclass(frozen=True)
class ReferenceOutput:
    """One image's result and all intermediate ones; those of the regions are None if CLIP did not run."""

    resized: np.ndarray  # (h, w, 3) uint8 RGB
    mask_logits: Tensor  # (N, Hp/4, Wp/4)
    query_embeddings: Tensor  # (N, D), not normalised
    masks: Tensor  # (N, h, w) probabilities
    binary_masks: Tensor  # (N, h, w) bool
    valid: Tensor  # (N,) bool
    boxes: Tensor  # (V, 4) float32: x1, y1, x2, y2, before expansion
    crops: Tensor | None  # (V, 3, S, S) normalised
    region_embeddings: Tensor | None  # (V, D) of length 1
    query_text: Tensor  # (K + 1, D) of length 1; the last row is "no object"
    region_text: Tensor  # (K, D) of length 1
    query_logits: Tensor  # (N, K + 1)
    class_probabilities: Tensor  # (N, K), or (V, K) where only regions count
    class_scores: Tensor  # (K, H, W)
    labels: Tensor  # (H, W) int64


class ReferenceSegmenter:
    """A model and a configuration, ready to segment."""

    def __init__(self, model: Model, configuration: Configuration):
        self.model = model
        self.configuration = configuration
        self.image_tower = model.region_clip.make_image_tower(configuration.region.crop_size)

    @torch.inference_mode()
    def segment(
        self, images: Sequence[np.ndarray], names: Sequence[str], seen: Sequence[bool] | None = None
    ) -> list[ReferenceOutput]:
        """Segment images (H, W, 3) uint8 RGB, as one padded batch, into the named classes.

        `seen` says which classes were trained on (None: none). Raises VocabularyError for a name that is too long.
        """
        resized = [resize_shortest_edge(image, self.configuration.input) for image in images]
        mask_logits, query_embeddings = self.model.proposal(normalise_and_pad(resized, self.configuration.input))
        text = self.text_embeddings(names)
        return [
            self.classify(image, resized[index], mask_logits[index], query_embeddings[index], text, seen)
            for index, image in enumerate(images)
        ]

    @torch.inference_mode()
    def text_embeddings(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Query side (K + 1, D), with "no object" last, and region side (K, D)."""
        model = self.model
        query = embed_names(names, model.query_clip, self.configuration.prompt.query, model.query_prompt)
        region = query
        if model.separate_region:
            region = embed_names(names, model.region_clip, self.configuration.region_prompt, model.region_prompt)
        return torch.cat([query, functional.normalize(model.non_object_embedding, dim=-1)]), region

    @torch.inference_mode()
    def classify(
        self,
        image: np.ndarray,
        resized: np.ndarray,
        mask_logits: Tensor,
        query_embeddings: Tensor,
        text: tuple[Tensor, Tensor],
        seen: Sequence[bool] | None = None,
    ) -> ReferenceOutput:
        """The second stage for one image, from mask logits (N, Hp/4, Wp/4) and query embeddings (N, D).

        `text` is what `text_embeddings` gives.
        """
        query_text, region_text = text
        padded_size = (4 * mask_logits.shape[1], 4 * mask_logits.shape[2])
        masks = upsample_masks(mask_logits, padded_size, resized.shape[:2])
        ensemble = self.configuration.ensemble
        binary = masks > self.configuration.region.mask_threshold
        valid = binary.flatten(1).any(dim=1)
        boxes = tight_boxes(binary[valid])
        query_logits = ensemble.temperature * functional.normalize(query_embeddings, dim=-1) @ query_text.T
        crops = region_embeddings = None
        if ensemble.enabled:
            cut = masks[valid] if self.configuration.region.matting else binary[valid].float()
            crops, region_embeddings, region_logits = self._classify_regions(resized, cut, boxes, region_text)
            probabilities = combine(query_logits, region_logits, valid, seen, ensemble.weight)
        else:
            probabilities = query_logits.softmax(dim=-1)[:, :-1]
        voters = masks[valid] if ensemble.enabled and ensemble.weight <= 0 else masks
        scores = torch.einsum("qc,qhw->chw", probabilities, voters)
        scores = functional.interpolate(scores[None], size=image.shape[:2], mode="bilinear", align_corners=False)[0]
        return ReferenceOutput(
            resized=resized,
            mask_logits=mask_logits,
            query_embeddings=query_embeddings,
            masks=masks,
            binary_masks=binary,
            valid=valid,
            boxes=boxes,
            crops=crops,
            region_embeddings=region_embeddings,
            query_text=query_text,
            region_text=region_text,
            query_logits=query_logits,
            class_probabilities=probabilities,
            class_scores=scores,
            labels=scores.argmax(dim=0),
        )

    def _classify_regions(
        self, resized: np.ndarray, masks: Tensor, boxes: Tensor, region_text: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (V, 3, S, S), embeddings (V, D) of length 1 and logits (V, K) of the regions' masks (V, h, w)."""
        region, clip = self.configuration.region, self.model.region_clip
        picture = torch.tensor(resized).permute(2, 0, 1).float()
        size = (region.crop_size, region.crop_size)
        crops = [
            functional.interpolate(crop[None], size=size, mode="bicubic", align_corners=False)
            for crop in cut_regions(picture, masks, boxes, region, clip)
        ]
        if not crops:
            nothing = torch.zeros(0, region_text.shape[1])
            return torch.zeros(0, 3, *size), nothing, nothing @ region_text.T
        stacked = torch.cat(crops)
        embeddings = functional.normalize(self.image_tower(stacked), dim=-1)
        return stacked, embeddings, self.configuration.ensemble.temperature * embeddings @ region_text.T


def resized_size(height: int, width: int, settings: InputSection) -> tuple[int, int]:
    """(h, w): the shorter side becomes `min_size`, unless the longer one would exceed `max_size`."""
    scale = settings.min_size / min(height, width)
    h, w = (settings.min_size, scale * width) if height < width else (scale * height, settings.min_size)
    if max(h, w) > settings.max_size:
        shrink = settings.max_size / max(h, w)
        h, w = h * shrink, w * shrink
    return int(h + 0.5), int(w + 0.5)


def resize_shortest_edge(image: np.ndarray, settings: InputSection) -> np.ndarray:
    """Resize to `resized_size`: bilinear with antialiasing, rounded to uint8, as Pillow does it."""
    h, w = resized_size(image.shape[0], image.shape[1], settings)
    return np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))


def normalise_and_pad(images: Sequence[np.ndarray], settings: InputSection) -> Tensor:
    """Images (h, w, 3) uint8 -> (B, 3, Hp, Wp), zero-padded at right and bottom to the largest, rounded up."""
    divisor = settings.divisor
    height, width = (-(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (0, 1))
    mean = torch.tensor(settings.mean).view(3, 1, 1)
    std = torch.tensor(settings.std).view(3, 1, 1)
    batch = torch.zeros(len(images), 3, height, width)
    for padded, image in zip(batch, images, strict=True):
        pixels = torch.tensor(image).permute(2, 0, 1).float()
        padded[:, : image.shape[0], : image.shape[1]] = (pixels - mean) / std
    return batch


def upsample_masks(mask_logits: Tensor, padded_size: tuple[int, ...], image_size: tuple[int, ...]) -> Tensor:
    """Mask logits (N, Hp/4, Wp/4) -> probabilities (N, h, w) of the image without its padding."""
    full = functional.interpolate(mask_logits[None], size=padded_size, mode="bilinear", align_corners=False)[0]
    return full[:, : image_size[0], : image_size[1]].sigmoid()


def tight_boxes(binary: Tensor) -> Tensor:
    """Boxes (V, 4) float32 x1, y1, x2, y2 around non-empty masks (V, h, w); x2 and y2 are one past the last pixel."""
    boxes = torch.zeros(len(binary), 4)
    for box, mask in zip(boxes, binary, strict=True):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        box[:] = torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1]).float()
    return boxes


def expand_box(box: Tensor, ratio: float, image_size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Scale a box about its centre in float32, truncate to integers, clip to (h, w): left, top, right, bottom."""
    centre = 0.5 * (box[:2] + box[2:])
    half = 0.5 * ((box[2:] - box[:2]) * ratio)
    left, top = (int(value) for value in (centre - half).tolist())
    right, bottom = (int(value) for value in (centre + half).tolist())
    return max(left, 0), max(top, 0), min(right, image_size[1]), min(bottom, image_size[0])


def cut_regions(picture: Tensor, masks: Tensor, boxes: Tensor, region: RegionSection, clip: ClipModel) -> list[Tensor]:
    """Normalised cut-outs (3, box height, box width) of a picture (3, h, w) in 0..255, filled outside the masks."""
    mean = 255.0 * torch.tensor(clip.mean).view(3, 1, 1)
    std = 255.0 * torch.tensor(clip.std).view(3, 1, 1)
    fill = mean if region.mask_fill == "mean" else torch.zeros_like(mean)
    cuts = []
    for mask, box in zip(masks, boxes, strict=True):
        left, top, right, bottom = expand_box(box, region.expand_ratio, tuple(picture.shape[1:]))
        inside = mask[top:bottom, left:right]
        cut = picture[:, top:bottom, left:right] * inside + (1 - inside) * fill
        cuts.append((cut - mean) / std)
    return cuts


def combine(
    query_logits: Tensor, region_logits: Tensor, valid: Tensor, seen: Sequence[bool] | None, weight: float
) -> Tensor:
    """Class probabilities (N, K) from query logits (N, K + 1) and the valid masks' region logits (V, K).

    Seen classes: query^weight * region^(1 - weight); unseen ones the other way round. An invalid mask has no region
    evidence (factor 1). With a weight of 0 or less only regions count, and the result is (V, K).
    """
    region = region_logits.softmax(dim=-1)
    if weight <= 0:
        return region
    query = query_logits.softmax(dim=-1)[:, :-1]
    evidence = torch.ones_like(query)
    evidence[valid] = region
    flags = torch.zeros(query.shape[1]) if seen is None else torch.tensor([float(flag) for flag in seen])
    trained = query**weight * evidence ** (1 - weight)
    novel = query ** (1 - weight) * evidence**weight
    return flags * trained + (1 - flags) * novel


def embed_names(
    names: Sequence[str], clip: ClipModel, prompt: str | Sequence[str], learned: LearnedPrompt | None
) -> Tensor:
    """Text embeddings (K, D) of length 1: the mean over templates, or one learned prompt."""
    stripped = [name.strip() for name in names]
    if prompt == "learned" and learned is not None:
        return _embed_learned(stripped, clip, learned)
    templates = PROMPTS[prompt] if isinstance(prompt, str) else prompt
    sequences = [[_sequence(clip, template.format(name)) for name in stripped] for template in templates]
    per_template = [_encode(clip, clip.text_tower, row, stripped) for row in sequences]
    return functional.normalize(torch.stack(per_template).mean(dim=0), dim=-1)


def _embed_learned(names: Sequence[str], clip: ClipModel, learned: LearnedPrompt) -> Tensor:
    """[start] prefix name suffix "." [end]; the learned vectors are extra rows of the embedding table."""
    tower = clip.make_text_tower(torch.cat([learned.prefix, learned.suffix]))
    prefix = range(clip.vocab_size, clip.vocab_size + len(learned.prefix))
    suffix = range(prefix.stop, prefix.stop + len(learned.suffix))
    rows = []
    for name in names:
        (start, *tokens, end), _ = _sequence(clip, name)
        ids = [start, *prefix, *tokens, *suffix, DOT, end]
        rows.append((ids, len(ids) - 1))
    return _encode(clip, tower, rows, names)


@cache
def _tokenizer(vocabulary_size: int) -> Any:
    """open_clip's tokenizer; for a smaller embedding table, with as many of its merges as the table has rows for."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    *symbols, start, end = tokenizer.encoder
    kept = [*symbols[: vocabulary_size - 2], start, end]
    tokenizer.encoder = {symbol: index for index, symbol in enumerate(kept)}
    merges = len(tokenizer.bpe_ranks) - (len(symbols) + 2 - len(kept))
    tokenizer.bpe_ranks = dict(list(tokenizer.bpe_ranks.items())[:merges])
    return tokenizer


def _sequence(clip: ClipModel, text: str) -> tuple[list[int], int]:
    """Token ids, and the place of the feature; CLIP's start and end are the last two of its vocabulary."""
    if clip.tokenizer is not None:
        return clip.tokenizer.sequences.sequence(text)
    ids = _tokenizer(clip.vocab_size).encode(text)
    return [clip.vocab_size - 2, *ids, clip.vocab_size - 1], len(ids) + 1


def _encode(
    clip: ClipModel, tower: torch.nn.Module, rows: Sequence[tuple[list[int], int]], names: Sequence[str]
) -> Tensor:
    """Features (len(rows), D) of length 1 of token sequences, padded with zeros to the text encoder's length."""
    length = clip.context_length
    for (row, _), name in zip(rows, names, strict=True):
        if len(row) > length:
            raise VocabularyError(
                f"class name {name[:40]!r} takes {len(row)} tokens, the text encoder reads {length}: shorten it"
            )
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows])
    ends = torch.tensor([end for _, end in rows])
    parts = [tower(*part) for part in zip(ids.split(TEXT_BATCH), ends.split(TEXT_BATCH), strict=True)]
    return functional.normalize(torch.cat(parts), dim=-1)
