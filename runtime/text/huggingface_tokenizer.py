"""Tokenizers other than CLIP's own, such as SigLIP's, read by the package `tokenizers`."""

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vocabseg.runtime.bundle.manifest import TokenizerSpec
from vocabseg.runtime.errors import BundleError, EngineError
from vocabseg.runtime.text.prompts import AnyTokenizer, shorten
from vocabseg.runtime.text.tokenizer import Tokenizer, repair


class HuggingFaceTokenizer:
    """Token sequences of a text encoder that takes `context_length` of them, equal to those of open_clip's HFTokenizer.

    Raises EngineError if the package `tokenizers` is not installed, and BundleError for a file that it cannot read.
    """

    def __init__(self, path: str | Path, spec: TokenizerSpec, context_length: int):
        try:
            import tokenizers
        except ImportError:
            raise EngineError(
                f"the tokenizer {path} needs the package tokenizers: pip install 'vocabseg[tokenizers]'"
            ) from None
        with _told(f"{path} is not a tokenizer", "export the bundle again"):
            self.inner = tokenizers.Tokenizer.from_file(str(path))
        # Class names that are too long are refused, not cut.
        self.inner.no_truncation()
        self.inner.no_padding()
        self.context_length = context_length
        self._path, self._spec = path, spec

    def sequence(self, text: str) -> tuple[list[int], int]:
        """Token ids of `text` with its special tokens, filled up to the context length, and the feature's place.

        Raises BundleError for a text that the tokenizer fails on.
        """
        spec = self._spec
        instead = "use another name, or export the bundle with a tokenizer that knows it"
        with _told(f"the tokenizer {self._path} cannot encode {shorten(text)!r}", instead):
            ids = list(self.inner.encode(clean(text, spec.clean)).ids)
        ids += [spec.pad_id] * (self.context_length - len(ids))
        ids = [0 if token in spec.zeroed_ids else token for token in ids]
        # Without an end token, open_clip's argmax gives the first place.
        at_end = 0 if spec.end_id not in ids else ids.index(spec.end_id)
        return ids, len(ids) - 1 if spec.end_id is None else at_end


@contextmanager
def _told(what: str, instead: str) -> Iterator[None]:
    """Raise BundleError for whatever the package raises: plain exceptions, and panics, which are no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{what} ({' '.join(str(error).split())[:200]}): {instead}") from None


def open_tokenizer(path: str | Path, spec: TokenizerSpec | None, context_length: int) -> AnyTokenizer:
    """The tokenizer of a text encoder that takes `context_length` tokens; CLIP's own without `spec`.

    Raises BundleError for a file that is missing or damaged, EngineError if a package is missing.
    """
    if spec is None or spec.kind == "clip":
        return Tokenizer.from_file(path)
    return HuggingFaceTokenizer(path, spec, context_length)


def clean(text: str, how: str) -> str:
    """Text as open_clip's HFTokenizer cleans it: "whitespace" collapsed, "lower" case as well, or "canonicalize".

    Canonical text is that of big_vision (Zhai et al. 2023): "_" is a space, other ASCII punctuation goes, lower case.
    """
    text = " ".join(repair(text).split())
    if how == "canonicalize":
        text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
        return " ".join(text.lower().split())
    return text.lower() if how == "lower" else text
