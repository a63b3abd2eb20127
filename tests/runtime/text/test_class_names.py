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


def test_synonyms_are_written_with_a_bar() -> None:
    assert Vocabulary.of("cat|kitten,sky").synonyms == (("cat", "kitten"), ("sky",))
    with pytest.raises(VocabularyError, match=r"\| without spaces between the names of one class"):
        Vocabulary.of("cat | kitten, sky")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("n.csv", "id,name,color,isthing\n7,cat|kitten,#ff8000,1\n90,sky,,0\n"),
        ("n.tsv", "name\tcategory_id\tcolour\tis_thing\ncat | kitten\t7\trgb(255,128,0)\tyes\nsky\t90\t\tno\n"),
        ("n.json", '{"categories": [{"id": 7, "name": "cat|kitten", "color": [255, 128, 0], "isthing": 1}, '
                   '{"id": 90, "name": "sky", "isthing": 0, "supercategory": "sky"}], "images": []}'),
    ],
)  # fmt: skip
def test_files_with_ids_and_colours(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    vocabulary = Vocabulary.of(f"@{tmp_path / file}")
    known = vocabulary.categories
    assert vocabulary.written == ("cat|kitten", "sky")
    assert (known.ids, known.colours, known.things) == ((7, 90), ((255, 128, 0), None), (True, False))
    other = vocabulary.replace(other=True).categories
    assert (other.ids, other.other, other.countable(3)) == ((7, 90, 91), 2, [0])
    assert other.palette(3)[[0, 2]].tolist() == [[255, 128, 0], [128, 128, 128]]


def test_a_dictionary_of_colours(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text('{"cat": "#ff8000", "sky": [1, 2, 3]}')
    vocabulary = Vocabulary.of(f"@{tmp_path / 'n.json'}")
    assert (vocabulary.names, vocabulary.categories.colours) == (("cat", "sky"), ((255, 128, 0), (1, 2, 3)))


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
        ("n.json", '[{"name": "sky"}, {"id": 7}]', "no list of texts"),
        ("n.json", '[{"name": "sky", "id": 1}, {"name": "sea"}]', "give ids for some classes, but none for 'sea'"),
        ("n.csv", "id,name\n1,sky\n1,sea\n", "the id 1 is that of two classes"),
        ("n.csv", "id,name\nn01,sky\n", "the id 'n01' of class 'sky' is no whole number"),
        (
            "n.csv",
            "id,name\n1," + "x" * 200_000,
            "cannot be read .field larger than field limit .131072..: save it as CSV",
        ),
        ("n.csv", "name,color\nsky,#12345\n", "the colour '#12345' of class 'sky' is none: write #rrggbb"),
        ("n.csv", "name,isthing\nsky,maybe\n", "isthing 'maybe' of class 'sky' is no yes or no"),
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
