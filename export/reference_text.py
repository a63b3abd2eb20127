"""The text half of the reference: class names -> embeddings in plain PyTorch, with open_clip's own tokenizer."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vocabseg.export.checkpoint.load import LearnedPrompt
from vocabseg.export.model.clip import ClipModel
from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.text.prompts import PROMPTS

DOT = 269  # CLIP's token of "."
TEXT_BATCH = 128


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
