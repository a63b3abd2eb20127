"""PromptEncoder: class names to unit-length text embeddings, by a bundle's tokenizer and text encoder."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from vocabseg.runtime.bundle.folder import TOKENIZER, Bundle
from vocabseg.runtime.bundle.manifest import PromptSpec, TokenizerSpec
from vocabseg.runtime.errors import BundleError, EngineError
from vocabseg.runtime.text.huggingface_tokenizer import open_tokenizer
from vocabseg.runtime.text.prompts import AnyTokenizer, TokenSequence, check_length, shorten, token_sequences

Progress = Callable[[int, int], None]


class TextEngine(Protocol):
    """Runs the text encoder: inputs token_ids (B, L) and eot_index (B,), int64; output text_features (B, D).

    Results are cached on disk under `key`, which differs between engines that compute different values.
    """

    @property
    def key(self) -> str: ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]: ...


# Sequences encoded at a time: enough for full speed, and about 50 MB of activations in CLIP's text encoder.
BATCH = 64


class PromptEncoder:
    """Encodes names with the prompts of `bundle`, `batch` sequences at a time."""

    def __init__(self, bundle: Bundle, batch: int = BATCH):
        self.bundle = bundle
        self._batch = batch
        self._tokenizers: dict[TokenizerSpec | None, AnyTokenizer] = {}

    def _tokenizer(self, prompt: PromptSpec) -> AnyTokenizer:
        spec = prompt.tokenizer
        if spec not in self._tokenizers:
            inputs = self.bundle.graph(prompt.graph).inputs
            context = next((each.shape[1] for each in inputs if each.name == "token_ids"), 0)
            file = TOKENIZER if spec is None else spec.file
            self._tokenizers[spec] = self.bundle.read(file, lambda path: open_tokenizer(path, spec, int(context)))
        return self._tokenizers[spec]

    def width(self, prompt: PromptSpec) -> int:
        for output in self.bundle.graph(prompt.graph).outputs:
            if output.name == "text_features" and isinstance(output.shape[-1], int):
                return output.shape[-1]
        raise BundleError(
            f"bundle {self.bundle.folder}: graph {prompt.graph!r} has no text_features of fixed width: export it again"
        )

    def check(self, names: Sequence[str], prompt: PromptSpec) -> None:
        """Raise VocabularyError if a name is too long for the prompt's text encoder, which is not run."""
        for name in names:
            check_length(name, prompt, self._tokenizer(prompt))

    def encode(
        self, names: list[str], prompt: PromptSpec, engine: TextEngine, progress: Progress | None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield names and their rows as they are encoded. All lengths are checked before the first is encoded."""
        self.check(names, prompt)
        count = 1 if prompt.kind == "learned" else len(prompt.templates)
        total = len(names) * count
        features = np.empty((count, self.width(prompt)), np.float32)
        done = 0
        if progress and names:
            progress(0, total)
        for batch in _batches(self._sequences(names, prompt), self._batch):
            for row in self._run(engine, prompt, batch):
                features[done % count] = row
                done += 1
                if done % count == 0:
                    name = names[done // count - 1]
                    yield name, self._combine(features, prompt, name)
            if progress:
                progress(done, total)

    def _sequences(self, names: Sequence[str], prompt: PromptSpec) -> Iterator[TokenSequence]:
        for name in names:
            yield from token_sequences(name, prompt, self._tokenizer(prompt))

    def _run(self, engine: TextEngine, prompt: PromptSpec, batch: list[TokenSequence]) -> np.ndarray:
        token_ids = np.zeros((len(batch), self._tokenizer(prompt).context_length), np.int64)
        for row, (ids, _) in zip(token_ids, batch, strict=True):
            row[: len(ids)] = ids
        eot_index = np.array([end for _, end in batch], np.int64)
        features = engine.run({"token_ids": token_ids, "eot_index": eot_index})["text_features"]
        if features.shape != (len(batch), self.width(prompt)):
            raise EngineError(
                f"the text encoder returned text_features of shape {features.shape}, expected "
                f"{(len(batch), self.width(prompt))}: export the bundle again"
            )
        return features

    def _combine(self, features: np.ndarray, prompt: PromptSpec, name: str) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            row = normalise(features)
            row = row[0] if prompt.kind == "learned" else normalise(row.mean(axis=0))
        if not np.isfinite(row).all():
            raise EngineError(
                f"the text encoder returned no usable embedding for {shorten(name)!r} (zero, infinite or NaN): use "
                "precision float32"
            )
        return row


def normalise(rows: np.ndarray) -> np.ndarray:
    """Rows of float32 scaled to unit length."""
    return rows / np.sqrt(np.sum(rows * rows, axis=-1, keepdims=True))


def _batches(sequences: Iterator[TokenSequence], size: int) -> Iterator[list[TokenSequence]]:
    while batch := list(itertools.islice(sequences, size)):
        yield batch
