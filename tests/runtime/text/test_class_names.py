"""Class names in every form in which people write them: read rightly, or refused; never one class of them all."""

from pathlib import Path

import pytest

from vocabseg.benchmarks.datasets import label_maps
from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.text.vocabulary import Vocabulary

THREE = ("sky", "hot dog", "water")
SHIPPED = Path(label_maps.__file__).parent / "class_names"


@pytest.mark.parametrize(
    "text",
    [
        "sky,hot dog,water",
        " sky , hot dog,water ",
        "sky\nhot dog\nwater",
        "sky\r\nhot dog\r\n\r\nwater\n",
        "sky,\nhot dog,\nwater",
        "sky,\nhot dog,\nwater,\n",
        "# my classes, in order\nsky\nhot dog\nwater",
        "1 sky\n2 hot dog\n3 water",
        "0: sky\n1: hot dog\n2: water",
        "1) sky\n2) hot dog\n10) water",
        "- sky\n- hot dog\n- water",
        '["sky", "hot dog", "water"]',
        ' [ "sky","hot dog",\n"water" ] ',
    ],
)
def test_texts_with_three_names(text: str) -> None:
    assert Vocabulary.of(text).names == THREE


@pytest.mark.parametrize(
    "text",
    [
        "names.txt", "classes.json", "lists/labels.csv", "sky; water", "sky;water, grass", "sky . water .",
        "sky . water", "sky. water. grass.", "sky | water", "sky\twater", "sky\\nwater", '"sky", "water"',
        "'sky', 'water'",
        "['sky', 'water']", "[sky, water]", '{"sky": ["clouds"]}', '["sky", 7]', "sky, water\ngrass", '[["sky"]]',
    ],
)  # fmt: skip
def test_texts_that_would_be_one_class(text: str) -> None:
    with pytest.raises(VocabularyError) as refused:
        Vocabulary.of(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["St. Bernard", "bird's nest", "T-shirt", "wall-concrete", "24/7 shop", "7 seater", "U.S. flag"]
)
def test_names_with_signs_in_them(name: str) -> None:
    assert Vocabulary.of(name).names == (name,)
    assert Vocabulary.of(f"sky, {name}").names == ("sky", name)


def test_a_forgotten_sign_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    for name in ("lists/mine", "names.txt", "sky"):
        (tmp_path / name).write_text("sky\nwater\n")
    for name in ("lists/mine", "names.txt"):
        with pytest.raises(VocabularyError, match=f"write @{name} for those in it"):
            Vocabulary.of(name)
        assert Vocabulary.of(f"@{name}").names == ("sky", "water")
    assert Vocabulary.of("sky").names == ("sky",), "a file may be called like a class"


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("n.csv", "name\nsky\nwater\n", ("sky", "water")),
        ("n.csv", "\ufeffClass\r\nsky\r\n\r\nwater\r\n", ("sky", "water")),
        ("n.csv", "sky\nwater\n", ("sky", "water")),
        ("n.csv", 'id,name,colour\n1,sky,blue\n2,"water, deep",green\n', ("sky", "water, deep")),
        ("n.csv", "sky,water,grass\n", ("sky", "water", "grass")),
        ("n.tsv", "id\tlabel\n1\tsky\n2\twater\n", ("sky", "water")),
        ("n.txt", "id,name\n1,sky\n2,water\n", ("sky", "water")),
        ("n.txt", "Idx\tRatio\tName\n1\t0.1\twall\n2\t0.2\tsky\n", ("wall", "sky")),
        ("n.json", '["sky", "water"]', ("sky", "water")),
        ("n.txt", "sky, water, grass\n", ("sky", "water", "grass")),
        ("n.txt", "building, edifice\nsky\n", ("building, edifice", "sky")),
        ("n.txt", "building;edifice\nsky\n", ("building;edifice", "sky")),
        ("n.txt", "# COCO, by id\n1 person\n13 stop sign\n", ("person", "stop sign")),
        ("n.txt", "1 euro\n2 euro\n", ("1 euro", "2 euro")),
        ("n.txt", "2 euro\nsky\n", ("2 euro", "sky")),
        ("n.txt", "#\n# only\nsky\n", ("sky",)),
    ],
)
def test_files(tmp_path: Path, file: str, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    assert Vocabulary.of(f"@{tmp_path / file}").names == names


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("n.csv", "1,sky\n2,water\n", "has 2 columns, none of which is called name"),
        ("n.csv", "sky\nbuilding, edifice\n", "has 2 columns"),
        ("n.csv", "id,name\n1\n", "has no name"),
        ("n.csv", "name\n", "is empty"),
        ("n.txt", "# nothing\n", "is empty"),
        ("n.txt", "sky; water\n", "several names"),
        ("n.json", '{"names": ["sky"]}', "no list of texts"),
        ("n.json", "sky\nwater", "cannot be read as JSON"),
    ],
)
def test_files_that_are_no_lists(tmp_path: Path, file: str, text: str, told: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(VocabularyError, match=told):
        Vocabulary.of(f"@{tmp_path / file}")


@pytest.mark.parametrize(
    ("file", "count", "first", "last"),
    [
        ("ade20k_150.txt", 150, "wall", "flag"),
        ("ade20k_847.txt", 847, "wall", "adding machine, totalizer, totaliser"),
        ("coco_stuff_171.txt", 171, "person", "wood"),
        ("pascal_context_59.txt", 59, "aeroplane", "wood"),
    ],
)
def test_the_lists_that_come_with_the_package(file: str, count: int, first: str, last: str) -> None:
    path = SHIPPED / file
    names = Vocabulary.of(f"@{path}").names
    assert (len(names), names[0], names[-1]) == (count, first, last)
    text = path.read_text(encoding="utf-8")
    if any("," in name for name in names):
        with pytest.raises(VocabularyError, match="by commas and by line breaks"):
            Vocabulary.of(text)
    else:
        assert Vocabulary.of(text).names == names


def test_dictionaries_would_lose_their_values() -> None:
    for given in ({"names": {"sky": ["clouds"]}}, {"names": ["sky"], "seen": {"sky": False}},
                  {"names": ["sky"], "templates": {"a {}": 1}}):  # fmt: skip
        with pytest.raises(VocabularyError, match="are a dictionary, whose values would be lost"):
            Vocabulary(**given)  # type: ignore[arg-type]
    assert Vocabulary({"sky": 1}.keys()).names == ("sky",)
