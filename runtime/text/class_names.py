"""Classes as people write them: names in a line of text; or a file, with ids, colours and examples if it has them."""

import csv
import json
import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.text.examples import ExampleImage, checked_examples
from vocabseg.runtime.text.prompts import shorten

# What the column of names may be called in a table; one column alone needs no such line above it.
COLUMNS = (
    "name",
    "names",
    "class",
    "classes",
    "class_name",
    "class_names",
    "label",
    "labels",
    "category",
    "categories",
)
# What the other columns of a table, and the entries of a class in JSON, may be called.
OTHERS = {
    "id": "ids", "category_id": "ids",
    "colour": "colours", "color": "colours", "rgb": "colours", "hex": "colours",
    "isthing": "things", "is_thing": "things", "thing": "things",
}  # fmt: skip
TABLES = {".csv": ",", ".tsv": "\t"}
LISTS = (*TABLES, ".txt", ".json", ".names", ".lst")
# Between the names of one class, of which the best counts.
SEPARATOR = "|"
# Between commas, these show that names were separated in another way, or stand in quotes.
OTHERWISE = re.compile(r"""[;\t"]|\s\||\|\s|\\n|\s\.(\s|$)|\.\s.*\.$|^'.*'$""")
# Numbers or bullets that all lines of a list may start with.
MARKED = re.compile(r"\s*(?:\d+[\s.:)]+|[-*]\s+)(.*\S)\s*")


@dataclass(frozen=True)
class ClassList:
    """Classes by their names, as the constructor of Vocabulary takes them, and what else was written of each."""

    names: list[str]
    ids: list[Any] | None = None
    colours: list[Any] | None = None
    things: list[Any] | None = None
    examples: dict[str, tuple[ExampleImage, ...]] | None = None

    def arguments(self) -> dict[str, Any]:
        """Named as those of Vocabulary."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def classes_in_text(text: str) -> ClassList:
    """The classes in "cat|kitten, grass", in lines, in a JSON list, or in a file: "@names.txt".

    Raises VocabularyError for names separated in another way, for the name of a file without @, and as
    `classes_in_file`.
    """
    if text.startswith("@"):
        return classes_in_file(Path(text[1:]))
    text = text.strip()
    if not text:
        raise VocabularyError("the vocabulary is empty: give at least one class name")
    if text[0] in "[{":
        return _from_json(text, "the class names")
    if Path(text).suffix.lower() in LISTS or (os.sep in text and Path(text).is_file()):
        raise VocabularyError(
            f"the class name {shorten(text)!r} is that of a file: write @{shorten(text)} for those in it"
        )
    return ClassList(names_in_text(text))


def names_in_text(text: str) -> list[str]:
    """The names in "cat|kitten, grass" or in lines; no file is read. Raises VocabularyError for another separator."""
    if "\n" in text or "\r" in text:
        names = _from_lines(re.split(r"[\r\n]+", text))
        if any("," in name for name in names):
            raise VocabularyError(
                f"the class names {shorten(text)!r} are separated by commas and by line breaks: use one of them"
            )
    else:
        names = [name.strip() for name in text.split(",")]
    for name in names:
        if OTHERWISE.search(name):
            raise VocabularyError(
                f"the class name {shorten(name)!r} is quoted, or several names: write them as they are, with commas "
                f"between classes, and {SEPARATOR} without spaces between the names of one class"
            )
    return names


def classes_in_file(path: Path) -> ClassList:
    """The classes in a file: one on each line; a column of a table (.csv, .tsv); or JSON (.json).

    A table may have columns for ids, colours and isthing (see OTHERS). JSON is a list of names; a list of classes such
    as {"name": "cat", "id": 7, "color": "#ff8800", "isthing": 1}, also under "categories", as COCO has it; or a
    dictionary of names and colours. A class with "images", files beside this one or as `ExampleImage.of` takes them, is
    shown by them. Lines that start with # are comments; numbers and bullets that all lines start with
    are left out. One line alone may hold several names, as on the command line. Raises VocabularyError for a file
    without names, and for one that cannot be read.
    """
    shown = repr(shorten(str(path)))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise VocabularyError(f"the file of class names {shown} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, ValueError):
        raise VocabularyError(
            f"the file of class names {shown} is no UTF-8 text: save it as UTF-8, one name on each line"
        ) from None
    if path.suffix.lower() == ".json":
        return _from_json(text, f"the file of class names {shown}", path.parent)
    # Not splitlines, which also cuts at form feeds and the like.
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip() and not line.startswith("#")]
    if not lines:
        raise VocabularyError(f"the file of class names {shown} is empty: write one name on each line")
    separator = TABLES.get(path.suffix.lower()) or next((sign for sign in ",\t" if _is_header(lines[0], sign)), None)
    if separator is not None:
        return _from_table(lines, separator, shown)
    single = len(lines) == 1 and lines[0][0] != "@"
    return classes_in_text(lines[0]) if single else ClassList(_from_lines(lines))


def _from_lines(lines: list[str]) -> list[str]:
    """A name from each line, without a number or a bullet where all have one, and without commas at their ends."""
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(lines) > 1 and all(line.endswith(",") for line in lines[:-1]):
        lines = [line.removesuffix(",").rstrip() for line in lines]
    marked = [match[1] for match in map(MARKED.fullmatch, lines) if match]
    return marked if len(set(marked)) == len(lines) > 1 else lines


def _is_header(line: str, separator: str) -> bool:
    cells = [cell.strip().lower() for cell in line.split(separator)]
    return len(cells) > 1 and any(cell in COLUMNS for cell in cells)


def _from_json(text: str, what: str, folder: Path | None = None) -> ClassList:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{what} cannot be read as JSON ({error}): give a list of names") from None
    if isinstance(found, dict):
        listed = found.get("categories")
        if isinstance(listed, list):
            found = listed
        elif found and all(isinstance(value, str) or _is_colour(value) for value in found.values()):
            return ClassList(list(found), colours=list(found.values()))
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return ClassList(found)
    if isinstance(found, list) and found and all(_is_class(entry) for entry in found):
        listed = _from_rows(found, [entry["name"] for entry in found], what)
        shown = {entry["name"]: entry["images"] for entry in found if "images" in entry}
        return replace(listed, examples=checked_examples(shown, folder) if shown else None)
    raise VocabularyError(
        f'{what} are JSON, but no list of texts: write ["cat", "grass"], or [{{"name": "cat", "id": 1, "color": '
        '"#ff8800"}]'
    )


def _is_class(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(part, int) for part in value)


def _from_rows(rows: list[dict[str, Any]], names: list[str], what: str) -> ClassList:
    """The classes with what their rows, with the keys of OTHERS, say of them."""
    known: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for row in rows for key in row if key.lower() in OTHERS):
        known[OTHERS[key.lower()]] = [row.get(key) for row in rows]
    for kind in ("ids", "things"):
        missing = [name for name, value in zip(names, known.get(kind, names), strict=True) if value in (None, "")]
        if missing:
            raise VocabularyError(f"{what} give {kind} for some classes, but none for {shorten(missing[0])!r}: add it")
    return ClassList(names, known.get("ids"), known.get("colours"), known.get("things"))


def _from_table(lines: list[str], separator: str, shown: str) -> ClassList:
    try:
        head, *body = csv.reader(lines, delimiter=separator)
    except csv.Error as error:
        raise VocabularyError(f"the table of class names {shown} cannot be read ({error}): save it as CSV") from None
    column = next((place for place, cell in enumerate(head) if cell.strip().lower() in COLUMNS), None)
    if column is None and not body:
        return ClassList(head)
    if column is None:
        column, body = 0, [head, *body]
        head = next((row for row in body if len(row) > 1), head)
        if len(head) > 1:
            raise VocabularyError(
                f"the table of class names {shown} has {len(head)} columns, none of which is called name: put a line "
                "such as id,name above the others"
            )
        return ClassList([row[0] for row in body])
    for row in body:
        if len(row) <= column:
            raise VocabularyError(f"the row {shorten(separator.join(row))!r} of {shown} has no name: fill it in")
    keys = [cell.strip() for cell in head]
    rows: list[dict[str, Any]] = [dict(zip(keys, row, strict=False)) for row in body]
    return _from_rows(rows, [row[column] for row in body], f"the table {shown}")
