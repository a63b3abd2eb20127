"""Tokenizers other than CLIP's own, against the package transformers where it is installed."""

import json

import pytest

from tests.runtime.text.tokenizer_files import write_tokenizer
from vocabseg.runtime.bundle.manifest import PromptSpec, TokenizerSpec
from vocabseg.runtime.errors import BundleError, EngineError, VocabularyError
from vocabseg.runtime.text.huggingface_tokenizer import HuggingFaceTokenizer, clean, open_tokenizer
from vocabseg.runtime.text.prompts import check_length, token_sequences

tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers reads these files")

TEXTS = (
    "a photo of a cat.",
    "Caf\u00e9_au-lait!",
    "  two\n\tspaces ",
    "",
    "\u732b and &amp; dog",
    "l\u00c3\u00a9zard",
    "[SEP] x",
)
CONTEXT = 16


@pytest.mark.parametrize(("kind", "how"), [("pieces", "canonicalize"), ("words", "whitespace"), ("words", "lower")])
def test_ids_equal_those_of_open_clips_wrapper(tmp_path, kind, how):
    pytest.importorskip("transformers", reason="open_clip reads these tokenizers with the package transformers")
    from open_clip.tokenizer import HFTokenizer

    folder = write_tokenizer(tmp_path / "tokenizer", kind)
    strip = kind == "words"
    oracle = HFTokenizer(str(folder), context_length=CONTEXT, clean=how, strip_sep_token=strip)
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    zeroed = (inner.token_to_id("[SEP]"),) if strip else ()
    pad = inner.token_to_id("[PAD]" if strip else "<pad>")
    spec = TokenizerSpec(file="x", kind="huggingface", clean=how, pad_id=pad, zeroed_ids=zeroed)
    found = open_tokenizer(folder / "tokenizer.json", spec, CONTEXT)
    for text in TEXTS:
        ids, place = found.sequence(text)
        assert len(ids) <= CONTEXT or text == TEXTS[4]
        assert ids[: CONTEXT - 1] == oracle([text])[0].tolist()[: CONTEXT - 1]
        assert place == len(ids) - 1


def test_sequences_are_filled_up_and_read_at_the_last_place_or_the_end_token(tmp_path):
    path = write_tokenizer(tmp_path / "tokenizer", "pieces") / "tokenizer.json"
    inner = tokenizers.Tokenizer.from_file(str(path))
    pad, end = inner.token_to_id("<pad>"), inner.token_to_id("</s>")
    last = HuggingFaceTokenizer(path, TokenizerSpec(file="x", kind="huggingface", pad_id=pad), CONTEXT)
    ids, place = last.sequence("a cat")
    text = inner.encode("a cat").ids
    assert ids == text + [pad] * (CONTEXT - len(text))
    assert place == CONTEXT - 1
    at_end = HuggingFaceTokenizer(path, TokenizerSpec(file="x", kind="huggingface", pad_id=pad, end_id=end), CONTEXT)
    assert at_end.sequence("a cat") == (ids, len(text) - 1)
    zeroed = TokenizerSpec(file="x", kind="huggingface", pad_id=pad, zeroed_ids=(end,))
    assert HuggingFaceTokenizer(path, zeroed, CONTEXT).sequence("a cat")[0] == [0 if i == end else i for i in ids]


def test_names_that_are_too_long_are_refused_and_learned_prompts_need_clips_tokenizer(tmp_path):
    path = write_tokenizer(tmp_path / "tokenizer", "pieces") / "tokenizer.json"
    tokenizer = HuggingFaceTokenizer(path, TokenizerSpec(file="x", kind="huggingface"), CONTEXT)
    prompt = PromptSpec(graph="text_encoder", kind="custom", templates=["a photo of a {}."])
    with pytest.raises(VocabularyError, match=r"makes a prompt of \d+ tokens, .* at most 16"):
        check_length("house by the water " * 8, prompt, tokenizer)
    check_length("cat", prompt, tokenizer)
    with pytest.raises(BundleError, match="learned prompt needs CLIP's tokenizer"):
        token_sequences("cat", PromptSpec(graph="text_encoder", kind="learned"), tokenizer)


def test_files_that_are_no_tokenizer_and_a_missing_package(tmp_path, monkeypatch):
    spec = TokenizerSpec(file="x", kind="huggingface")
    broken = tmp_path / "tokenizer.json"
    broken.write_text('{"model": 3}')
    with pytest.raises(BundleError, match=r"tokenizer.json is not a tokenizer \(.*export the bundle again"):
        open_tokenizer(broken, spec, CONTEXT)
    content = json.loads((write_tokenizer(tmp_path / "pieces", "pieces") / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"] = {}
    broken.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"cannot encode 'a cat' \(.*: use another name"):  # it panics
        open_tokenizer(broken, spec, CONTEXT).sequence("a cat")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 0}, unk_token="[UNK]"))
    words.save(str(tmp_path / "words.json"))
    partial = open_tokenizer(tmp_path / "words.json", spec, CONTEXT)
    assert partial.sequence("cat")[0][0] == 0
    with pytest.raises(BundleError, match=r"words.json cannot encode 'dog' \(.*Missing \[UNK\].*: use another name"):
        partial.sequence("dog")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(EngineError, match=r"needs the package tokenizers: pip install 'vocabseg\[tokenizers\]'"):
        open_tokenizer(broken, spec, CONTEXT)


def test_cleaning():
    assert [clean(" A_b-C,  d&amp;E ", how) for how in ("whitespace", "lower", "canonicalize")] == [
        "A_b-C, d&E",
        "a_b-c, d&e",
        "a bc de",
    ]
