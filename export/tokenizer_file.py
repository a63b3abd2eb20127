"""Writes `tokenizer.json`: CLIP's byte-pair tokenizer in the Hugging Face `tokenizers` format."""

import json
from collections.abc import Sequence
from pathlib import Path

from vocabseg.runtime.errors import ConfigurationError
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


def write_tokenizer(
    path: str | Path, merges: Sequence[tuple[str, str]] | None = None, context_length: int = CONTEXT_LENGTH
) -> Path:
    """Write `tokenizer.json` to `path`, with CLIP's merges or others (by rank). The same merges give the same bytes.

    Hugging Face's pipeline has no counterpart of CLIP's text repair (ftfy, HTML entities), so that is left to the
    reader of the file; lower-casing is in it.
    """
    merges = clip_merges() if merges is None else merges
    vocabulary = build_vocabulary(merges)
    specials = {name: vocabulary[name] for name in (START, END)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    start, end = ({"SpecialToken": {"id": name, "type_id": 0}} for name in (START, END))
    first, second = ({"Sequence": {"id": name, "type_id": index}} for index, name in enumerate("AB"))
    document = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": context_length, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": context_length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": next(iter(vocabulary)),
        },
        "added_tokens": [{"id": index, "content": name, **flags} for name, index in specials.items()],
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
            "single": [start, first, end],
            "pair": [first, second],
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
            "vocab": vocabulary,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    path = Path(path)
    path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")), encoding="utf-8", newline="\n")
    return path
