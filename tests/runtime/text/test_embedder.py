import sqlite3
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.golden import load_golden
from tests.manifests import small_manifest
from vocabseg.export.tokenizer_file import write_tokenizer
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import GraphRecord, Prompts, PromptSpec, TensorRecord, file_record
from vocabseg.runtime.errors import BundleError, EngineError, VocabularyError
from vocabseg.runtime.text.embedder import TextEmbedder, normalise
from vocabseg.runtime.text.prompts import PROMPTS, token_sequences
from vocabseg.runtime.text.tokenizer import Tokenizer
from vocabseg.runtime.text.vocabulary import Vocabulary

WIDTH = 8
CONTEXT = 48
SINGLE = PromptSpec(graph="text_encoder", kind="single", templates=["a {}."])
VILD = PromptSpec(graph="text_encoder", kind="vild", templates=["a {}.", "the {}", "{} here"])
LEARNED = PromptSpec(graph="text_encoder", kind="learned", prefix_ids=[514, 515], suffix_ids=[516])
NAMES = ["cat", "grass", "sky", "tall tree", "é"]


class RowEngine:
    """Features are a fixed function of the ids up to the end of text, one row at a time."""

    key = "test-cpu-float32"

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).standard_normal((517, WIDTH)).astype(np.float32)
        self.place = np.random.default_rng(1).standard_normal((CONTEXT, 1)).astype(np.float32)
        self.batches: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids, ends = inputs["token_ids"], inputs["eot_index"]
        assert ids.dtype == ends.dtype == np.int64
        assert ids.shape == (len(ends), CONTEXT)
        self.batches.append(len(ids))
        rows = []
        for row, end in zip(ids, ends, strict=True):
            assert row[0] == 512
            assert row[end] == 513
            assert not row[end + 1 :].any()
            rows.append((self.table[row[: end + 1]] * self.place[: end + 1]).sum(axis=0))
        return {"text_features": np.array(rows, np.float32)}


def make_bundle(
    folder: Path, query: PromptSpec = SINGLE, region: PromptSpec | None = None, width: int = WIDTH
) -> Bundle:
    folder.mkdir(exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(folder / "tokenizer.json", merges=[], context_length=CONTEXT)
    graph = GraphRecord(
        file="text_encoder.onnx",
        bytes=1,
        sha256="ab" * 32,
        inputs=[],
        outputs=[TensorRecord(name="text_features", dtype="float32", shape=["batch", width])],
        opset=21,
    )
    manifest = small_manifest(
        graphs={"text_encoder": graph, "region_text_encoder": graph},
        files={"tokenizer": file_record(folder, "tokenizer.json")},
        prompts=Prompts(query=query, region=region or query),
    )
    return Bundle(folder, manifest, {"query.non_object_embedding": np.full((1, width), 3.0, np.float32)})


@pytest.fixture
def engine() -> RowEngine:
    return RowEngine()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def embedder(bundle: Bundle, engine: RowEngine, cache_dir: str | Path = "", **named: int) -> TextEmbedder:
    return TextEmbedder(bundle, lambda graph: engine, cache_dir, **named)


def expected(bundle: Bundle, engine: RowEngine, names: Sequence[str], prompt: PromptSpec) -> np.ndarray:
    """The same in float64 and one sequence at a time."""
    tokenizer = Tokenizer.from_file(bundle.path("tokenizer.json"))
    rows = []
    for name in names:
        raw = []
        for ids, end in token_sequences(name, prompt, tokenizer):
            padded = np.array([ids + [0] * (CONTEXT - len(ids))])
            raw.append(engine.run({"token_ids": padded, "eot_index": np.array([end])})["text_features"][0])
        unit = [row.astype(np.float64) / np.linalg.norm(row.astype(np.float64)) for row in raw]
        mean = np.mean(unit, axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows)


@pytest.mark.parametrize("prompt", [SINGLE, VILD, LEARNED])
def test_rows_follow_the_definition(bundle: Bundle, engine: RowEngine, prompt: PromptSpec) -> None:
    rows = embedder(bundle, engine).embed(NAMES, prompt)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected(bundle, engine, NAMES, prompt), atol=3e-7)


def test_learned_sequences_are_start_prefix_name_suffix_stop_end(bundle: Bundle) -> None:
    tokenizer = Tokenizer.from_file(bundle.path("tokenizer.json"))
    [(ids, end)] = token_sequences("ab", LEARNED, tokenizer)
    assert ids == [512, 514, 515, *tokenizer.encode("ab"), 516, *tokenizer.encode("."), 513]
    assert end == len(ids) - 1


def test_a_name_that_spells_the_end_of_text_ends_there(bundle: Bundle) -> None:
    tokenizer = Tokenizer.from_file(bundle.path("tokenizer.json"))
    [(ids, end)] = token_sequences("x<end_of_text>y", SINGLE, tokenizer)
    assert ids.count(513) == 2
    assert end == ids.index(513)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64])
def test_batching_changes_no_bit(bundle: Bundle, engine: RowEngine, batch: int) -> None:
    whole = embedder(bundle, engine).embed(NAMES, VILD)
    engine.batches.clear()
    parts = embedder(bundle, engine, batch=batch).embed(NAMES, VILD)
    assert max(engine.batches) <= batch
    assert sum(engine.batches) == len(NAMES) * 3
    assert all(size == batch for size in engine.batches[:-1])
    assert np.array_equal(parts, whole)
    one_by_one = embedder(bundle, engine, batch=batch)
    assert np.array_equal(np.concatenate([one_by_one.embed([name], VILD) for name in NAMES]), whole)


def test_no_name_is_encoded_twice(bundle: Bundle, engine: RowEngine) -> None:
    text = embedder(bundle, engine)
    first = text.embed(["cat", "sky"], SINGLE)
    again = text.embed(["sky", "dog", " cat ", "dog"], SINGLE)
    assert engine.batches == [2, 1]
    assert np.array_equal(again[[2, 0]], first)
    assert np.array_equal(again[1], again[3])
    again[:] = 0
    assert np.array_equal(text.embed(["cat", "sky"], SINGLE), first)


def test_prompts_do_not_mix(bundle: Bundle, engine: RowEngine, tmp_path: Path) -> None:
    text = embedder(bundle, engine, tmp_path / "cache")
    alone = [embedder(bundle, engine).embed(NAMES, prompt) for prompt in (SINGLE, VILD, LEARNED)]
    for _ in range(2):
        for prompt, rows in zip((SINGLE, VILD, LEARNED), alone, strict=True):
            assert np.array_equal(text.embed(NAMES, prompt), rows)
    assert np.array_equal(text.embed(NAMES, SINGLE, VILD.templates), alone[1])
    assert np.array_equal(text.embed(NAMES, LEARNED, SINGLE.templates), alone[0])


def test_memory_is_bounded(bundle: Bundle, engine: RowEngine) -> None:
    text = embedder(bundle, engine, remembered_names=3)
    rows = text.embed(NAMES, SINGLE)
    assert len(text._memory) == 3
    engine.batches.clear()
    assert np.array_equal(text.embed(NAMES[-3:], SINGLE), rows[-3:])
    assert engine.batches == []
    assert np.array_equal(text.embed(NAMES, SINGLE), rows)
    assert engine.batches == [2]


def test_matrices_of_both_sides(tmp_path: Path, engine: RowEngine) -> None:
    bundle = make_bundle(tmp_path / "bundle", SINGLE, LEARNED)
    text = embedder(bundle, engine)
    vocabulary = Vocabulary(NAMES)
    query = text.query_matrix(vocabulary)
    assert query.shape == (len(NAMES) + 1, WIDTH)
    assert query.dtype == np.float32
    assert np.array_equal(query[:-1], text.embed(NAMES, SINGLE))
    np.testing.assert_allclose(query[-1], WIDTH**-0.5, rtol=1e-6)
    assert np.array_equal(text.region_matrix(vocabulary), text.embed(NAMES, LEARNED))
    other = Vocabulary(NAMES, templates=VILD.templates)
    assert np.array_equal(text.region_matrix(other), text.embed(NAMES, VILD))
    assert np.array_equal(text.query_matrix(other)[:-1], text.embed(NAMES, VILD))
    bundle.tensors.clear()
    with pytest.raises(BundleError, match="non_object_embedding"):
        text.query_matrix(vocabulary)


def test_progress_counts_sequences(bundle: Bundle, engine: RowEngine) -> None:
    text = embedder(bundle, engine, batch=4)
    calls: list[tuple[int, int]] = []
    text.embed(NAMES[:3], VILD, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 9), (4, 9), (8, 9), (9, 9)]
    calls.clear()
    text.embed(NAMES[:3], VILD, progress=lambda done, total: calls.append((done, total)))
    assert calls == []


def test_long_names_are_found_before_anything_is_encoded(bundle: Bundle, engine: RowEngine) -> None:
    long = "long " * 30
    with pytest.raises(VocabularyError, match=r"takes at most 48") as caught:
        embedder(bundle, engine).embed(["cat", long], SINGLE)
    tokens = len(Tokenizer.from_file(bundle.path("tokenizer.json")).encode(f"a {long}.")) + 2
    assert f"a prompt of {tokens} tokens" in str(caught.value)
    assert len(str(caught.value)) < 200
    assert engine.batches == []


def test_a_name_may_fill_the_context(bundle: Bundle, engine: RowEngine) -> None:
    text = embedder(bundle, engine)
    assert text.embed(["x" * (CONTEXT - 4)], SINGLE).shape == (1, WIDTH)
    with pytest.raises(VocabularyError, match="49 tokens"):
        text.embed(["x" * (CONTEXT - 3)], SINGLE)


def test_no_names_give_no_rows(bundle: Bundle, engine: RowEngine) -> None:
    assert embedder(bundle, engine).embed([], SINGLE).shape == (0, WIDTH)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_unusable_features_are_refused_and_not_kept(bundle: Bundle, engine: RowEngine, tmp_path: Path) -> None:
    text = embedder(bundle, engine, tmp_path / "cache")
    good = engine.table
    for value in (np.nan, np.inf, 0.0):
        engine.table = np.full_like(good, value)
        with pytest.raises(EngineError, match="no usable embedding for 'cat'"):
            text.embed(["cat"], VILD)
    engine.table = good[:, :4]
    with pytest.raises(EngineError, match=r"shape \(1, 4\)"):
        text.embed(["cat"], SINGLE)
    engine.table = good
    assert np.isfinite(text.embed(["cat"], VILD)).all()


def test_bundles_that_lack_something(bundle: Bundle, engine: RowEngine) -> None:
    with pytest.raises(BundleError, match="has no templates"):
        embedder(bundle, engine).embed(["cat"], PromptSpec(graph="text_encoder", kind="vild"))
    with pytest.raises(BundleError, match="no graph 'x'"):
        embedder(bundle, engine).embed(["cat"], PromptSpec(graph="x", kind="vild", templates=["{}"]))


def test_embeddings_outlive_the_embedder(bundle: Bundle, engine: RowEngine, tmp_path: Path) -> None:
    rows = embedder(bundle, engine, tmp_path / "cache").embed(NAMES, VILD)
    engine.batches.clear()
    (tmp_path / "bundle" / "tokenizer.json").unlink()
    assert np.array_equal(embedder(bundle, engine, tmp_path / "cache").embed(NAMES, VILD), rows)
    assert engine.batches == []


def test_another_engine_gets_its_own(bundle: Bundle, engine: RowEngine, tmp_path: Path) -> None:
    embedder(bundle, engine, tmp_path / "cache").embed(NAMES, SINGLE)
    other = RowEngine()
    other.key = "test-cpu-bfloat16"
    embedder(bundle, other, tmp_path / "cache").embed(NAMES, SINGLE)
    assert other.batches == [len(NAMES)]


def test_the_environment_says_where_embeddings_are_kept(
    bundle: Bundle, engine: RowEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path / "here"))
    TextEmbedder(bundle, lambda graph: engine).embed(["cat"], SINGLE)
    assert (tmp_path / "here" / "text.sqlite").is_file()
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", "")
    TextEmbedder(bundle, lambda graph: engine).embed(["cat"], SINGLE)
    assert engine.batches == [1, 1]


def test_values_of_wrong_length_or_no_numbers_are_encoded_anew(
    bundle: Bundle, engine: RowEngine, tmp_path: Path
) -> None:
    rows = embedder(bundle, engine, tmp_path).embed(NAMES, SINGLE)
    for value in (b"", b"short", bytes(4 * WIDTH + 4), np.full(WIDTH, np.nan, np.float32).tobytes(), "text"):
        with sqlite3.connect(tmp_path / "text.sqlite") as connection:
            connection.execute("UPDATE embeddings SET value = ?", (value,))
        connection.close()
        engine.batches.clear()
        assert np.array_equal(embedder(bundle, engine, tmp_path).embed(NAMES, SINGLE), rows)
        assert engine.batches == [len(NAMES)]


def test_an_interrupted_run_keeps_what_it_has(bundle: Bundle, engine: RowEngine, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedder(bundle, engine, tmp_path / "cache", batch=2).embed(NAMES, SINGLE, progress=stop)
    engine.batches.clear()
    embedder(bundle, engine, tmp_path / "cache").embed(NAMES, SINGLE)
    assert engine.batches == [1]


def test_threads_share_one_embedder(bundle: Bundle, engine: RowEngine, tmp_path: Path) -> None:
    names = [f"thing {index}" for index in range(60)]
    rows = embedder(bundle, engine).embed(names, VILD)
    text = embedder(bundle, engine, tmp_path / "cache", batch=5, remembered_names=40)
    results: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def work(number: int) -> None:
        for start in range(0, 40, 7):
            part = slice(start + number, start + number + 20)
            results[number, start] = text.embed(names[part], VILD), rows[part]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 24
    assert all(np.array_equal(got, want) for got, want in results.values())


def test_ten_thousand_names(bundle: Bundle, engine: RowEngine, tmp_path: Path) -> None:
    names = [f"thing {index}" for index in range(10_000)]
    rows = embedder(bundle, engine, tmp_path / "cache").query_matrix(Vocabulary(names))
    assert rows.shape == (10_001, WIDTH)
    engine.batches.clear()
    assert np.array_equal(embedder(bundle, engine, tmp_path / "cache").query_matrix(Vocabulary(names)), rows)
    assert engine.batches == []


def test_combining_templates_equals_the_golden(tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="open_clip has the full vocabulary")
    arrays, meta = load_golden("e_text_and_clip")
    tokens, raw = arrays["tokens_vild"], arrays["vild_per_template_raw"]
    features = {tokens[t, n].tobytes(): raw[t, n] for t in range(14) for n in range(17)}

    class Recorded:
        key = "golden"

        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            ids = inputs["token_ids"]
            assert not ids[:, 32:].any()
            assert np.array_equal(inputs["eot_index"], ids.argmax(axis=1))
            return {"text_features": np.array([features[row[:32].astype(np.int32).tobytes()] for row in ids])}

    folder = tmp_path / "bundle"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json")
    prompt = PromptSpec(graph="text_encoder", kind="vild", templates=list(PROMPTS["vild"]))
    bundle = make_bundle(folder, prompt, width=64)
    rows = TextEmbedder(bundle, lambda graph: Recorded()).embed(meta["names"], prompt)
    np.testing.assert_allclose(rows, arrays["feat_vild"], atol=2e-7)
    np.testing.assert_allclose(np.linalg.norm(normalise(raw), axis=-1), 1, atol=1e-6)
