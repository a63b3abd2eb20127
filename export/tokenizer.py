"""Writes `tokenizer.json`: CLIP's byte-pair tokenizer in the Hugging Face `tokenizers` format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vocabseg.runtime.errors import ConfigurationError, VocabularyError
from vocabseg.runtime.text.tokenizer import PIECES, WORD_END, byte_symbols

START, END = "<start_of_text>", "<end_of_text>"
CONTEXT_LENGTH = 77


def clip_merges() -> list[tuple[str, str]]:
    """The 48,894 merges of CLIP's vocabulary in order of rank, from open_clip's bundled file."""
    from open_clip.tokenizer import SimpleTokenizer

    ranks = SimpleTokenizer().bpe_ranks
    return sorted(ranks, key=ranks.__getitem__)


def vocabulary_merges(vocabulary_size: int) -> list[tuple[str, str]]:
    """The merges behind an embedding table of so many rows: CLIP's own 49,408, or one cut down to the first merges.

    Raises ConfigurationError for a table too small to hold the bytes, start and end of text, or larger than CLIP's.
    """
    merges = clip_merges()
    smallest = 2 * len(byte_symbols()) + 2
    if not smallest <= vocabulary_size <= smallest + len(merges):
        raise ConfigurationError(
            f"the CLIP model has an embedding table of {vocabulary_size} tokens, its tokenizer {smallest} to "
            f"{smallest + len(merges)}: use a model with CLIP's own tokenizer"
        )
    return merges[: vocabulary_size - smallest]


def build_vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Symbol -> id as CLIP counts them: bytes, bytes that end a word, the merges' results, start and end of text."""
    symbols = list(byte_symbols().values())
    symbols += [symbol + WORD_END for symbol in symbols]
    symbols += [left + right for left, right in merges]
    symbols += [START, END]
    return {symbol: index for index, symbol in enumerate(symbols)}


def tokenizer_document(
    merges: Sequence[tuple[str, str]], vocabulary: Mapping[str, int], context_length: int
) -> dict[str, object]:
    """The content of `tokenizer.json`.

    Hugging Face's pipeline has no counterpart of CLIP's text repair (ftfy, HTML entities), so that is the caller's
    part; it does lower-case.
    """
    specials = {name: vocabulary[name] for name in (START, END)}
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": context_length,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": context_length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": next(symbol for symbol, index in vocabulary.items() if index == 0),
        },
        "added_tokens": [
            {
                "id": index,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name, index in specials.items()
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": START, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": END, "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                name: {"id": name, "ids": [index], "tokens": [name]} for name, index in sorted(specials.items())
            },
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": WORD_END,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def write_tokenizer(
    path: str | Path,
    merges: Sequence[tuple[str, str]] | None = None,
    vocabulary: Mapping[str, int] | None = None,
    context_length: int = CONTEXT_LENGTH,
) -> Path:
    """Write `tokenizer.json` to `path`: CLIP's own, or one of `merges` (by rank) and `vocabulary` (symbol -> id).

    Without `vocabulary` the ids are counted from the merges as CLIP does. The same arguments give the same bytes.
    Raises VocabularyError where the vocabulary lacks a byte, a merge's part or result, or start or end of text.
    """
    if merges is None:
        merges = clip_merges()
    if vocabulary is None:
        vocabulary = build_vocabulary(merges)
    needed = {*build_vocabulary(merges), *(symbol for pair in merges for symbol in pair)}
    missing = sorted(needed - set(vocabulary))
    if missing:
        raise VocabularyError(
            f"the tokenizer's vocabulary lacks {len(missing)} symbols, the first is {missing[0][:60]!r}: add it, or "
            "leave out the merges that need it"
        )
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise VocabularyError(
            f"the tokenizer's {len(vocabulary)} ids are not 0 to {len(vocabulary) - 1}: number them anew"
        )
    if context_length < 3:
        raise VocabularyError(f"a context of {context_length} tokens holds no text: use 3 or more")
    document = tokenizer_document(merges, vocabulary, context_length)
    path = Path(path)
    path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")), encoding="utf-8", newline="\n")
    return path
