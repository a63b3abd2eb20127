"""Vocabularies cut down to CLIP's first merges: told by the size of the embedding table alone."""

import pytest

from vocabseg.export.tokenizer_file import clip_merges, vocabulary_merges, write_tokenizer
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.text.tokenizer import Tokenizer

pytest.importorskip("open_clip", reason="CLIP's merges come with open_clip")


@pytest.mark.parametrize("rows", [514, 1000, 49408])
def test_the_tokenizer_fills_the_table(tmp_path, rows):
    write_tokenizer(tmp_path / "tokenizer.json", vocabulary_merges(rows), context_length=24)
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.end_id == rows - 1
    assert tokenizer.start_id == rows - 2
    assert tokenizer.context_length == 24
    ids = tokenizer.encode("a red striped circle, 日本")
    assert max(ids) < rows - 2
    assert (len(ids) < 12) == (rows == 49408)


def test_the_whole_vocabulary_is_clips():
    assert vocabulary_merges(49408) == clip_merges()


@pytest.mark.parametrize("rows", [0, 513, 49409])
def test_a_table_of_another_tokenizer_is_refused(rows):
    with pytest.raises(ConfigurationError, match=str(rows)):
        vocabulary_merges(rows)


@pytest.mark.parametrize("rows", [1000, 20_000, 49408])
def test_the_references_tokenizer_is_cut_alike(tmp_path, rows):
    from vocabseg.export.reference_text import _tokenizer

    write_tokenizer(tmp_path / "tokenizer.json", vocabulary_merges(rows))
    ours, published = Tokenizer.from_file(tmp_path / "tokenizer.json"), _tokenizer(rows)
    for text in ("a photo of a crt screen.", "Straße &amp; café, 日本 2000s", "x", "!!! ..."):
        assert ours.encode(text) == published.encode(text)
