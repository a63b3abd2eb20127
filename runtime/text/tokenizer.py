"""CLIP's tokenizer: text to token ids by byte-pair encoding, read from `tokenizer.json`."""

import heapq
import html
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from vocabseg.runtime.bundle.manifest import TokenId
from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.files import decode_json, read_regular

# Bytes that the file may have; CLIP's has some 2,000,000.
LARGEST_FILE = 64 << 20
WORD_END = "</w>"
# The pieces that text is split into before merging, as in Radford et al. 2021 (CLIP); case is ignored.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Pieces cached with their ids; the cache is cleared when full, which bounds memory (about 20 MB).
REMEMBERED_PIECES = 65536
# Marks a symbol that was merged into the one before it.
GONE = -1


class _Model(msgspec.Struct, frozen=True):
    type: Literal["BPE"]
    end_of_word_suffix: Literal["</w>"]
    vocab: dict[str, TokenId]
    # Pairs, or both joined by a space: the `tokenizers` library reads either and writes pairs.
    merges: list[str | tuple[str, str]]


class _Truncation(msgspec.Struct, frozen=True):
    max_length: Annotated[int, msgspec.Meta(ge=2, le=65536)]


class _SpecialToken(msgspec.Struct, frozen=True):
    ids: list[TokenId]


class _PostProcessor(msgspec.Struct, frozen=True):
    type: Literal["TemplateProcessing"]
    single: list[dict[str, Any]]
    special_tokens: dict[str, _SpecialToken]


class _Document(msgspec.Struct, frozen=True):
    pre_tokenizer: dict[str, Any]
    post_processor: _PostProcessor
    truncation: _Truncation
    model: _Model


def byte_symbols() -> dict[int, str]:
    """Byte -> its symbol, in the order of CLIP's ids: printable bytes are themselves, the others start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {value: chr(value) for value in printable}
    for value in range(256):
        if value not in symbols:
            symbols[value] = chr(0x100 + len(symbols) - len(printable))
    return symbols


def clean(text: str) -> str:
    """Text as CLIP's tokenizer sees it: mojibake repaired, HTML entities resolved, whitespace collapsed, lower case."""
    return " ".join(repair(text).split()).lower()


def repair(text: str) -> str:
    """Text with mojibake repaired and HTML entities resolved, as CLIP's and open_clip's other tokenizers do first."""
    # Printable ASCII without "&" has nothing to repair, and ftfy takes longer than everything else together.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text)))


class Tokenizer:
    """CLIP's byte-pair encoding; ids equal those of open_clip's SimpleTokenizer on any text. Thread-safe.

    `start_id` and `end_id` are the ids of start and end of text, `context_length` the most tokens of a sequence.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: Sequence[str | tuple[str, str]],
        specials: Sequence[str],
        context_length: int,
        origin: str = "the tokenizer",
    ):
        self.context_length = context_length
        self.origin = origin
        self.specials = specials
        self.start_id, self.end_id = (vocabulary[name] for name in specials)
        self._vocabulary = vocabulary
        self._merges = merges
        self._remembered: dict[str, list[int]] = {}

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json`; raises BundleError if it is missing, damaged or not a CLIP tokenizer."""
        path = Path(path)
        try:
            data = read_regular(path, LARGEST_FILE)
        except ValueError as error:
            raise BundleError(f"{path} cannot be read ({error}): export the bundle again") from None
        try:
            document = decode_json(data, _Document)
        except ValueError as error:
            reason = str(error)[:200]
            raise BundleError(f"{path} is not a CLIP tokenizer ({reason}): export the bundle again") from None
        specials = _specials(document.post_processor)
        problem = _problem(document, specials)
        if problem:
            raise BundleError(f"{path} is not a CLIP tokenizer ({problem}): export the bundle again")
        model = document.model
        return cls(model.vocab, model.merges, specials, document.truncation.max_length, str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without start and end of text."""
        ids: list[int] = []
        for piece in self._pattern.findall(clean(text)):
            known = self._remembered.get(piece)
            if known is None:
                known = self._encode_piece(piece)
                if len(self._remembered) >= REMEMBERED_PIECES:
                    self._remembered.clear()
                if len(piece) <= 64:
                    self._remembered[piece] = known
            ids += known
        return ids

    def sequence(self, text: str) -> tuple[list[int], int]:
        """Token ids of `text` from start to end of text, and the place of the end, where the feature is read."""
        ids = [self.start_id, *self.encode(text), self.end_id]
        # The first one counts: a text may spell out the end-of-text token itself.
        return ids, ids.index(self.end_id)

    @cached_property
    def _pattern(self) -> Any:
        import regex

        return regex.compile("|".join([*map(re.escape, self.specials), PIECES]), regex.IGNORECASE)

    @cached_property
    def _index(self) -> tuple[list[int], list[int], dict[tuple[int, int], tuple[int, int]]]:
        """Ids of the bytes, ids of the bytes that end a word, and (left, right) -> (rank, merged) over ids."""
        ids = self._vocabulary
        symbols = byte_symbols()
        inner = [ids[symbols[value]] for value in range(256)]
        final = [ids[symbols[value] + WORD_END] for value in range(256)]
        ranks = {}
        for rank, entry in enumerate(self._merges):
            left, right = entry.split(" ", 1) if isinstance(entry, str) else entry
            try:
                ranks[ids[left], ids[right]] = rank, ids[left + right]
            except KeyError as error:
                raise BundleError(
                    f"{self.origin} merges {left[:60]!r} and {right[:60]!r}, but {str(error.args[0])[:60]!r} is not in "
                    "its vocabulary: export the bundle again"
                ) from None
        return inner, final, ranks

    def _encode_piece(self, piece: str) -> list[int]:
        # Text that spells out a special token becomes that token, as in CLIP's own tokenizer.
        if piece in self.specials:
            return [self._vocabulary[piece]]
        inner, final, ranks = self._index
        data = piece.encode("utf-8")
        return merge([*(inner[value] for value in data[:-1]), final[data[-1]]], ranks)


def merge(symbols: list[int], ranks: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Byte-pair encoding of `symbols`: repeatedly merges every occurrence of the pair of lowest rank.

    `ranks` maps (left, right) to (rank, merged). A heap over the pairs keeps this at n log n for n symbols.
    """
    count = len(symbols)
    following = list(range(1, count + 1))
    preceding = list(range(-1, count - 1))
    current = list(symbols)
    heap: list[tuple[int, int, int, int, int]] = []

    def offer(position: int) -> None:
        after = following[position]
        if after < count:
            left, right = current[position], current[after]
            found = ranks.get((left, right))
            if found:
                heapq.heappush(heap, (found[0], position, left, right, found[1]))

    for position in range(count):
        offer(position)
    while heap:
        # Pop all occurrences of one pair, left to right, before merging any of them: a merge may create a pair of lower
        # rank, which has to wait for the rest of this one.
        places = [heapq.heappop(heap)]
        while heap and heap[0][0] == places[0][0]:
            places.append(heapq.heappop(heap))
        changed = []
        for _, position, left, right, merged in places:
            after = following[position]
            # Stale if a neighbouring merge consumed one of the two.
            if current[position] != left or after >= count or current[after] != right:
                continue
            current[position], current[after] = merged, GONE
            following[position] = following[after]
            if following[after] < count:
                preceding[following[after]] = position
            changed.append(position)
        for position in changed:
            if current[position] != GONE:
                offer(position)
            if preceding[position] >= 0:
                offer(preceding[position])
    return [symbol for symbol in current if symbol != GONE]


def _specials(processor: _PostProcessor) -> list[str]:
    """Names of the special tokens, in the order in which they surround a text."""
    named = [item["SpecialToken"] for item in processor.single if "SpecialToken" in item]
    return [str(item.get("id")) for item in named if isinstance(item, dict)]


def _problem(document: _Document, specials: list[str]) -> str | None:
    """Why this document is not a CLIP tokenizer; None if it is."""
    vocabulary = document.model.vocab
    if len(specials) != 2 or "Sequence" not in document.post_processor.single[1]:
        return "its template is not: start, text, end"
    for name in specials:
        listed = document.post_processor.special_tokens.get(name)
        if name not in vocabulary or listed is None or listed.ids != [vocabulary[name]]:
            return f"the token {name[:60]!r} is not in its vocabulary, or under another id"
    if PIECES not in _regexes(document.pre_tokenizer):
        return "it splits text by other rules"
    if document.truncation.max_length < 3:
        return f"a context of {document.truncation.max_length} tokens leaves no room for text"
    for symbol in byte_symbols().values():
        if symbol not in vocabulary or symbol + WORD_END not in vocabulary:
            return f"its vocabulary lacks the byte {symbol!r}"
    for entry in document.model.merges:
        if isinstance(entry, str) and " " not in entry:
            return f"{entry[:60]!r} is not a merge of two symbols"
    return None


def _regexes(pre_tokenizer: dict[str, Any]) -> list[str]:
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    patterns = [part.get("pattern") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return [str(pattern.get("Regex")) for pattern in patterns if isinstance(pattern, dict)]
