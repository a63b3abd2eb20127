"""TextEmbedder: class names to unit-length text embeddings by a bundle's text encoder; each name is encoded once."""

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np

from vocabseg.runtime.bundle.folder import TOKENIZER, Bundle
from vocabseg.runtime.bundle.manifest import PromptSpec, TokenizerSpec
from vocabseg.runtime.errors import BundleError, EngineError
from vocabseg.runtime.files import cache_folder
from vocabseg.runtime.text.cache import TextCache
from vocabseg.runtime.text.huggingface_tokenizer import open_tokenizer
from vocabseg.runtime.text.prompts import AnyTokenizer, TokenSequence, check_length, shorten, token_sequences
from vocabseg.runtime.text.vocabulary import Vocabulary

# Sequences encoded at a time: enough for full speed, and about 50 MB of activations in CLIP's text encoder.
BATCH = 64
# Embeddings kept in memory: 200 MB of 512 float32 values.
REMEMBERED_NAMES = 100_000
# Embeddings encoded between two writes to disk, so that an interrupted run loses little.
NAMES_PER_WRITE = 256
# Part of every key on disk: increment it when the arithmetic below changes.
ARITHMETIC = "1"

Progress = Callable[[int, int], None]


class TextEngine(Protocol):
    """Runs the text encoder: inputs token_ids (B, L) and eot_index (B,), int64; output text_features (B, D).

    Results are cached on disk under `key`, which differs between engines that compute different values.
    """

    @property
    def key(self) -> str: ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]: ...


class TextEmbedder:
    """Embeds class names with the text encoder of `bundle`; thread-safe.

    `open_engine` returns the engine for a graph name. Embeddings are cached in memory and in `cache_dir` (by default
    VOCABSEG_CACHE_DIR or the user's cache folder; no disk cache if it is empty).
    """

    def __init__(
        self,
        bundle: Bundle,
        open_engine: Callable[[str], TextEngine],
        cache_dir: str | Path | None = None,
        batch: int = BATCH,
        remembered_names: int = REMEMBERED_NAMES,
    ):
        self.bundle = bundle
        self._open_engine = open_engine
        self._disk = TextCache(cache_folder() if cache_dir is None else Path(cache_dir) if str(cache_dir) else None)
        self._batch = batch
        self._limit = remembered_names
        self._tokenizers: dict[TokenizerSpec | None, AnyTokenizer] = {}
        self._memory: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._memory_lock = threading.Lock()
        # How many names were found in memory and on disk, and how many had to be encoded.
        self.counts = {"memory": 0, "disk": 0, "encoded": 0}
        self._encoding_lock = threading.Lock()

    def query_matrix(self, vocabulary: Vocabulary) -> np.ndarray:
        """(K + 1, D) float32 to compare query embeddings with: a row per class, the last one for "no object".

        Raises VocabularyError for names that are too long.
        """
        non_object = self.bundle.tensors.get("query.non_object_embedding")
        text = self.text_matrix(vocabulary, "query")
        if non_object is None or non_object.shape != (1, text.shape[1]):
            shape = "no" if non_object is None else f"a {non_object.shape}"
            raise BundleError(
                f"bundle {self.bundle.folder} has {shape} query.non_object_embedding, expected (1, {text.shape[1]}): "
                "export it again"
            )
        return np.concatenate([text, normalise(non_object.astype(np.float32, copy=False))])

    def region_matrix(self, vocabulary: Vocabulary) -> np.ndarray:
        """(K, D) float32 to compare region embeddings with; raises VocabularyError for names that are too long."""
        return self.text_matrix(vocabulary, "region")

    def text_matrix(self, vocabulary: Vocabulary, side: Literal["query", "region"]) -> np.ndarray:
        """(K, D) float32, a unit-length row per class, from that side's prompt or the vocabulary's own templates."""
        prompts = self.bundle.manifest.prompts
        prompt = prompts.query if side == "query" else prompts.region
        return self.embed(vocabulary.names, prompt, vocabulary.templates)

    def embed(
        self,
        names: Sequence[str],
        prompt: PromptSpec,
        templates: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """(K, D) float32, one unit-length row per name; `templates` replace the prompt's own.

        Features of each template are normalised, averaged and normalised again (Radford et al. 2021, section 3.1.4);
        a learned prompt makes one sequence per name. `progress(done, total)` counts the sequences to be encoded.
        Raises VocabularyError for names that are too long, BundleError or EngineError if bundle or engine fails.
        """
        if templates is not None:
            custom = {"kind": "custom", "templates": list(templates), "prefix_ids": [], "suffix_ids": []}
            prompt = msgspec.structs.replace(prompt, **custom)
        names = [name.strip() for name in names]
        digest = self._digest(prompt)
        rows = self._recall(digest, names)
        with self._memory_lock:
            self.counts["memory"] += len(rows)
        if len(rows) < len(set(names)):
            with self._encoding_lock:
                # Meanwhile another thread may have encoded some of them.
                rows |= self._recall(digest, [name for name in names if name not in rows])
                missing = list(dict.fromkeys(name for name in names if name not in rows))
                rows |= self._find_or_encode(digest, missing, prompt, progress)
        matrix = np.empty((len(names), self._width(prompt)), np.float32)
        for index, name in enumerate(names):
            matrix[index] = rows[name]
        return matrix

    def _tokenizer(self, prompt: PromptSpec) -> AnyTokenizer:
        spec = prompt.tokenizer
        if spec not in self._tokenizers:
            path = self.bundle.path(TOKENIZER if spec is None else spec.file)
            context = self.bundle.graph(prompt.graph).inputs[0].shape[1]
            self._tokenizers[spec] = open_tokenizer(path, spec, int(context))
        return self._tokenizers[spec]

    def _width(self, prompt: PromptSpec) -> int:
        for output in self.bundle.graph(prompt.graph).outputs:
            if output.name == "text_features" and isinstance(output.shape[-1], int):
                return output.shape[-1]
        raise BundleError(
            f"bundle {self.bundle.folder}: graph {prompt.graph!r} has no text_features of fixed width: export it again"
        )

    def _digest(self, prompt: PromptSpec) -> str:
        """Identifies everything that an embedding depends on except the class name and the engine."""
        spec = prompt.tokenizer
        file = TOKENIZER if spec is None else spec.file
        tokenizer: list[object] = [
            record.sha256 for record in self.bundle.manifest.files.values() if record.file == file
        ]
        if spec is not None:
            tokenizer.append(spec)
        parts = (
            ARITHMETIC,
            self.bundle.graph(prompt.graph).digest(),
            tokenizer,
            prompt.kind == "learned",
            prompt.templates,
            prompt.prefix_ids,
            prompt.suffix_ids,
        )
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    def _recall(self, digest: str, names: Sequence[str]) -> dict[str, np.ndarray]:
        found = {}
        with self._memory_lock:
            for name in names:
                row = self._memory.get((digest, name))
                if row is not None:
                    self._memory.move_to_end((digest, name))
                    found[name] = row
        return found

    def _remember(self, digest: str, rows: Mapping[str, np.ndarray]) -> None:
        with self._memory_lock:
            for name, row in rows.items():
                self._memory[digest, name] = row
                self._memory.move_to_end((digest, name))
            while len(self._memory) > self._limit:
                self._memory.popitem(last=False)

    def _find_or_encode(
        self, digest: str, names: list[str], prompt: PromptSpec, progress: Progress | None
    ) -> dict[str, np.ndarray]:
        """Rows by name, from disk or from the text encoder."""
        if not names:
            return {}
        engine = self._open_engine(prompt.graph)
        width = self._width(prompt)
        keys = {name: _disk_key(digest, engine.key, name) for name in names}
        values = self._disk.read(list(keys.values()))
        rows = {}
        for name, key in keys.items():
            value = values.get(key, b"")
            if len(value) == 4 * width:
                row = np.frombuffer(value, "<f4").astype(np.float32)
                # Nothing but unit vectors was written; whoever wrote another must not decide about labels.
                with np.errstate(over="ignore"):
                    length = float(np.linalg.norm(row))
                if abs(length - 1) < 1e-3:
                    rows[name] = row
        self.counts["disk"] += len(rows)
        self._remember(digest, rows)
        fresh: dict[str, np.ndarray] = {}
        try:
            for name, row in self._encode([name for name in names if name not in rows], prompt, engine, progress):
                rows[name] = fresh[name] = row
                if len(fresh) >= NAMES_PER_WRITE:
                    self._keep(digest, fresh, keys)
                    fresh = {}
        finally:
            self._keep(digest, fresh, keys)
        return rows

    def _keep(self, digest: str, rows: Mapping[str, np.ndarray], keys: Mapping[str, bytes]) -> None:
        self.counts["encoded"] += len(rows)
        self._remember(digest, rows)
        self._disk.write({keys[name]: row.astype("<f4").tobytes() for name, row in rows.items()})

    def _encode(
        self, names: list[str], prompt: PromptSpec, engine: TextEngine, progress: Progress | None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield names and their rows as they are encoded. All lengths are checked before the first is encoded."""
        for name in names:
            check_length(name, prompt, self._tokenizer(prompt))
        count = 1 if prompt.kind == "learned" else len(prompt.templates)
        total = len(names) * count
        features = np.empty((count, self._width(prompt)), np.float32)
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
        if features.shape != (len(batch), self._width(prompt)):
            raise EngineError(
                f"the text encoder returned text_features of shape {features.shape}, expected "
                f"{(len(batch), self._width(prompt))}: export the bundle again"
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


def _disk_key(digest: str, engine_key: str, name: str) -> bytes:
    return hashlib.sha256("\0".join([digest, engine_key, name]).encode("utf-8", "surrogatepass")).digest()
