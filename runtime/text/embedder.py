"""TextEmbedder: class names to unit-length text embeddings by a bundle's text encoder; each name is encoded once."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from vocabseg.runtime.bundle.folder import TOKENIZER, Bundle
from vocabseg.runtime.bundle.manifest import PromptSpec
from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.files import cache_folder
from vocabseg.runtime.text import contrast
from vocabseg.runtime.text.cache import TextCache
from vocabseg.runtime.text.encoder import BATCH, Progress, PromptEncoder, TextEngine, normalise
from vocabseg.runtime.text.example_rows import EmbedImage, ExampleRows, Side, class_rows, row_counts
from vocabseg.runtime.text.prompts import with_templates
from vocabseg.runtime.text.vocabulary import Vocabulary

# Embeddings kept in memory: 200 MB of 512 float32 values.
REMEMBERED_NAMES = 100_000
# Vocabularies whose contrast names are kept.
REMEMBERED_CHOICES = 32
# Embeddings encoded between two writes to disk, so that an interrupted run loses little.
NAMES_PER_WRITE = 256
# Part of every key on disk: increment it when the arithmetic below changes.
ARITHMETIC = "1"


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
        embed_image: EmbedImage | None = None,
    ):
        """`embed_image` embeds example images with the image encoder; None refuses vocabularies with examples."""
        self.bundle = bundle
        self._open_engine = open_engine
        self._disk = TextCache(cache_folder() if cache_dir is None else Path(cache_dir) if str(cache_dir) else None)
        self._encoder = PromptEncoder(bundle, batch)
        self.examples = ExampleRows(embed_image)
        self._limit = remembered_names
        self._memory: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._memory_lock = threading.Lock()
        # Names with those of a contrast class, by all that they depend on; digests of examples, which keep no pixels.
        self._chosen: OrderedDict[tuple[object, ...], tuple[str, ...]] = OrderedDict()
        # How many names were found in memory and on disk, and how many had to be encoded.
        self.counts = {"memory": 0, "disk": 0, "encoded": 0}
        self._encoding_lock = threading.Lock()

    def query_matrix(self, vocabulary: Vocabulary) -> np.ndarray:
        """(R + 1, D) float32 to compare query embeddings with: a row per name, the last one for "no object".

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

    def object_matrix(self) -> np.ndarray:
        """(R + 1, D) float32 to tell objects from "no object" by, whatever classes are asked for: `query_matrix` of the
        bundle's own names, or of common words where it declares none."""
        return self.query_matrix(
            Vocabulary(contrast.split_names(self.bundle.manifest.vocabulary or ()) or contrast.NOUNS)
        )

    def region_matrix(self, vocabulary: Vocabulary) -> np.ndarray:
        """(R, D) float32 to compare region embeddings with; raises VocabularyError for names that are too long."""
        return self.text_matrix(vocabulary, "region")

    def text_matrix(self, vocabulary: Vocabulary, side: Side) -> np.ndarray:
        """(R, D) float32, a unit-length row per name, from that side's prompt or the vocabulary's own templates.

        With examples, their rows are among them (`example_rows`), which are shorter than unit length beside text.
        """
        prompts = self.bundle.manifest.prompts
        prompt = prompts.query if side == "query" else prompts.region
        text = self.embed(self.names(vocabulary), prompt, vocabulary.templates)
        if not any(vocabulary.examples):
            return text
        return class_rows(vocabulary, side, text, self.examples.rows(vocabulary, self))

    def names(self, vocabulary: Vocabulary, progress: Progress | None = None) -> tuple[str, ...]:
        """The R names of the matrices' rows, class after class; a contrast class's are chosen here if none were given.

        Candidates are the bundle's own names and common words, less those that mean one of the classes.
        """
        if vocabulary.contrast != ():
            return vocabulary.spoken
        spoken = vocabulary.spoken
        digests = tuple(tuple(one.digest for one in shown) for shown in vocabulary.examples)
        key = (spoken, vocabulary.templates, digests)
        with self._memory_lock:
            known = self._chosen.get(key)
        if known is not None:
            return known
        listed = contrast.candidates(self.bundle.manifest.vocabulary or (), spoken)
        rows = self.embed((*spoken, *listed), self.bundle.manifest.prompts.region, vocabulary.templates, progress)
        images = [row / (row @ row) for row in self.examples.rows(vocabulary, self).values()]
        classes = np.concatenate([rows[: len(spoken)], *(row[None] for row in images)])
        names = (*spoken, *contrast.different(listed, rows[len(spoken) :], classes))
        with self._memory_lock:
            self._chosen[key] = names
            while len(self._chosen) > REMEMBERED_CHOICES:
                self._chosen.popitem(last=False)
        return names

    def first_names(self, vocabulary: Vocabulary, side: Side) -> np.ndarray | None:
        """(K + 1,) int32: where each class's rows begin in the matrix, and R; None if every class has one name.

        On the query side (K + 2,): the row after them is that of "no object".
        """
        if vocabulary.plain:
            return None
        counts = row_counts(vocabulary, side, len(self.names(vocabulary)))
        return np.cumsum([0, *counts, *([1] if side == "query" else [])]).astype(np.int32)

    def embed_names(self, vocabulary: Vocabulary, progress: Progress | None = None) -> None:
        """Embed all names that are not known yet for both sides; raises VocabularyError for names that are too long."""
        names = self.names(vocabulary, progress)
        prompts = self.bundle.manifest.prompts
        for prompt in (prompts.query, prompts.region):  # the second one is free if they are equal
            self.embed(names, prompt, vocabulary.templates, progress)
        self.examples.rows(vocabulary, self)

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
        prompt = with_templates(prompt, templates)
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
        matrix = np.empty((len(names), self._encoder.width(prompt)), np.float32)
        for index, name in enumerate(names):
            matrix[index] = rows[name]
        return matrix

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
        width = self._encoder.width(prompt)
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
            for name, row in self._encoder.encode(
                [name for name in names if name not in rows], prompt, engine, progress
            ):
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


def _disk_key(digest: str, engine_key: str, name: str) -> bytes:
    return hashlib.sha256("\0".join([digest, engine_key, name]).encode("utf-8", "surrogatepass")).digest()
