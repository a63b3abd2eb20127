import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.text.vocabulary import Vocabulary

NAMES = st.text(min_size=1, max_size=20).map(lambda text: text.replace("|", "").strip()).filter(bool)


def message(*arguments: object, **named: object) -> str:
    with pytest.raises(VocabularyError) as caught:
        Vocabulary(*arguments, **named)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 250
    return text


def test_names_are_stripped_and_keep_their_order() -> None:
    vocabulary = Vocabulary([" sky", "cat\n", "Hot Dog"])
    assert vocabulary.names == ("sky", "cat", "Hot Dog")
    assert vocabulary.seen is None
    assert vocabulary.templates is None
    assert len(vocabulary) == 3
    assert list(vocabulary) == ["sky", "cat", "Hot Dog"]


@given(st.lists(NAMES, min_size=1, max_size=8, unique=True), st.data())
def test_flags_and_seen_names_say_the_same(names: list[str], data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    by_flag = Vocabulary(names, flags)
    by_name = Vocabulary(names, {name for name, flag in zip(names, flags, strict=True) if flag})
    assert by_flag == by_name
    assert hash(by_flag) == hash(by_name)
    assert by_flag.seen is not None
    assert by_flag.seen.dtype == bool
    assert by_flag.seen.tolist() == flags
    assert Vocabulary(names, np.array(flags, np.uint8)) == by_flag
    assert pickle.loads(pickle.dumps(by_flag)) == by_flag


def test_equality_is_by_value() -> None:
    assert Vocabulary(["a", "b"]) == Vocabulary(("a ", "b"))
    assert Vocabulary(["a", "b"]) != Vocabulary(["b", "a"])
    assert Vocabulary(["a"]) != Vocabulary(["a"], [True])
    assert Vocabulary(["a"]) != Vocabulary(["a"], None, ["a {}"])
    assert Vocabulary(["a"]) != ["a"]


def test_a_class_may_have_several_names_and_there_may_be_a_contrast_class() -> None:
    vocabulary = Vocabulary(["cat|kitten | tabby", "sky"], ["sky"], other=True)
    assert vocabulary.names == ("cat", "sky", "other")
    assert vocabulary.synonyms == (("cat", "kitten", "tabby"), ("sky",))
    assert vocabulary.seen is not None
    assert vocabulary.seen.tolist() == [False, True, False]
    assert not vocabulary.plain
    assert vocabulary.replace(other=["wall", "floor|ceiling"]).spoken[4:] == ("wall", "floor", "ceiling")
    image = np.zeros((2, 3, 3), np.uint8)
    full = Vocabulary(
        ["cat|kitten", "logo|sign"], None, ["a {}"], True, [4, 2], ["red", None], [True, False], {"logo": [image]}
    )
    for same in (pickle.loads(pickle.dumps(full)), full.replace(), Vocabulary(**full.arguments())):
        assert same == full
        assert hash(same) == hash(full)
    for other in (
        {"ids": [4, 3]},
        {"other": ["x"]},
        {"names": ["cat", "logo|sign"]},
        {"examples": {"logo": [image + 1]}},
    ):
        assert full.replace(**other) != full
    assert Vocabulary.from_images({"logo": [image]}).names == ("logo",)


def test_names_of_classes_that_are_refused() -> None:
    assert "has an empty synonym" in message(["cat||tabby"])
    assert "'cat' appears twice, as numbers 1 and 2" in message(["cat|kitten", "sky|cat"])
    assert "'sky' is a class name and a contrast name" in message(["cat", "sky"], other=["wall", "sky"])
    assert "'other' is that of the contrast class" in message(["other"], other=True)
    assert "1 ids for 2 classes" in message(["cat", "sky"], ids=[3])
    assert message(["cat"], ids=7) == "ids are 7 of type int: give a list"
    assert "colours are 'red' of type str" in message(["cat", "sky", "sea"], colours="red")
    assert "dictionary of names and images" in message(["cat"], examples=["a.png"])


def test_it_cannot_be_changed() -> None:
    vocabulary = Vocabulary(["a"], [True])
    with pytest.raises(AttributeError):
        vocabulary.names = ("b",)
    with pytest.raises(AttributeError):
        del vocabulary.names
    assert vocabulary.seen is not None
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.seen[0] = False


def test_of_takes_what_people_write(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["cat", "grass", "sky"])
    assert Vocabulary.of(vocabulary) is vocabulary
    assert Vocabulary.of("cat, grass,sky ") == vocabulary
    assert Vocabulary.of(["cat", "grass", "sky"]) == vocabulary
    assert Vocabulary.of(name for name in vocabulary) == vocabulary
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffcat\r\n\ngrass, long\r\nsky \x0c blue\n".encode())
    assert Vocabulary.of(f"@{file}").names == ("cat", "grass, long", "sky \x0c blue")


@pytest.mark.parametrize("value", ["", "  ", "cat,,sky", "cat,", "a,b,a", [], "@"])
def test_of_refuses(value: object) -> None:
    with pytest.raises(VocabularyError):
        Vocabulary.of(value)  # type: ignore[arg-type]


def test_of_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    with pytest.raises(VocabularyError, match="No such file"):
        Vocabulary.of(f"@{file}")
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(VocabularyError, match="UTF-8"):
        Vocabulary.of(f"@{file}")
    file.write_bytes(b"\n\n")
    with pytest.raises(VocabularyError, match="empty"):
        Vocabulary.of(f"@{file}")


def test_errors_name_the_value() -> None:
    assert "empty" in message([])
    assert "as numbers 1 and 3" in message(["tree", "sky", " tree"])
    assert "class name 2" in message(["tree", " "])
    assert "class name 2 is 7" in message(["tree", 7])
    assert "'tree'" in message("tree")
    assert "int" in message(7)
    assert "'dog'" in message(["cat"], {"dog"})
    assert "3 seen flags for 2 names" in message(["a", "b"], [True, False, True])
    assert "0.5" in message(["a"], [0.5])
    assert "'a photo'" in message(["a"], None, ["a photo"])
    assert "{} and {}" in message(["a"], None, ["{} and {}"])
    assert "{0}" in message(["a"], None, ["a {0}"])
    assert "}{" in message(["a"], None, ["a }{"])
    assert "empty" in message(["a"], None, [])
    assert "the single string" in message(["a"], None, "a {}")
    assert "x" * 57 + "..." in message(["x" * 5000] * 2)


def test_nobody_seen_is_not_the_same_as_unknown() -> None:
    assert Vocabulary(["a", "b"], []).seen.tolist() == [False, False]  # type: ignore[union-attr]


def test_ten_thousand_names() -> None:
    names = [f"thing {index}" for index in range(10_000)]
    vocabulary = Vocabulary(names, set(names[:9_999]), ["a {}"])
    assert len(vocabulary) == 10_000
    assert vocabulary.seen is not None
    assert vocabulary.seen.sum() == 9_999
    assert len(repr(vocabulary)) < 200


def test_repr_is_short_and_tells_all() -> None:
    vocabulary = Vocabulary(["a", "b"], ["b"], ["x {}", "y {}"])
    assert repr(vocabulary) == "Vocabulary(['a', 'b'], 1 seen, templates: 'x {}' and 1 more)"
