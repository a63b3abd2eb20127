"""Class names as people write them: in a line of text, or in a file."""

import csv
import json
import os
import re
from pathlib import Path

from vocabseg.runtime.errors import VocabularyError
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
TABLES = {".csv": ",", ".tsv": "\t"}
LISTS = (*TABLES, ".txt", ".json", ".names", ".lst")
# Between the names of one class, of which the best counts.
SEPARATOR = "|"
# Between commas, these show that names were separated in another way, or stand in quotes.
OTHERWISE = re.compile(r"""[;\t"]|\s\||\|\s|\\n|\s\.(\s|$)|\.\s.*\.$|^'.*'$""")
# Numbers or bullets that all lines of a list may start with.
MARKED = re.compile(r"\s*(?:\d+[\s.:)]+|[-*]\s+)(.*\S)\s*")


def names_in_text(text: str) -> list[str]:
    """The names in "cat|kitten, grass", in lines, in a JSON list, or in a file: "@names.txt".

    Raises VocabularyError for names separated in another way, for the name of a file without @, and as `names_in_file`.
    """
    if text.startswith("@"):
        return names_in_file(Path(text[1:]))
    text = text.strip()
    if not text:
        raise VocabularyError("the vocabulary is empty: give at least one class name")
    if text[0] in "[{":
        return _from_json(text, "the class names")
    if Path(text).suffix.lower() in LISTS or (os.sep in text and Path(text).is_file()):
        raise VocabularyError(
            f"the class name {shorten(text)!r} is that of a file: write @{shorten(text)} for those in it"
        )
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


def names_in_file(path: Path) -> list[str]:
    """The names in a file: one on each line; a JSON list (.json); or a column of a table (.csv, .tsv).

    Lines that start with # are comments; numbers and bullets that all lines start with are left out. One line alone may
    hold several names, as on the command line. Raises VocabularyError for a file without names, and for one that cannot
    be read.
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
        return _from_json(text, f"the file of class names {shown}")
    # Not splitlines, which also cuts at form feeds and the like.
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip() and not line.startswith("#")]
    if not lines:
        raise VocabularyError(f"the file of class names {shown} is empty: write one name on each line")
    separator = TABLES.get(path.suffix.lower()) or next((sign for sign in ",\t" if _is_header(lines[0], sign)), None)
    if separator is not None:
        return _from_table(lines, separator, shown)
    return names_in_text(lines[0]) if len(lines) == 1 and lines[0][0] != "@" else _from_lines(lines)


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


def _from_json(text: str, what: str) -> list[str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{what} cannot be read as JSON ({error}): give a list of names") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise VocabularyError(f'{what} are JSON, but no list of texts: write ["cat", "grass"]')
    return names


def _from_table(lines: list[str], separator: str, shown: str) -> list[str]:
    head, *body = csv.reader(lines, delimiter=separator)
    column = next((place for place, cell in enumerate(head) if cell.strip().lower() in COLUMNS), None)
    if column is None and not body:
        return head
    if column is None:
        column, body = 0, [head, *body]
        head = next((row for row in body if len(row) > 1), head)
        if len(head) > 1:
            raise VocabularyError(
                f"the table of class names {shown} has {len(head)} columns, none of which is called name: put a line "
                "such as id,name above the others"
            )
    for row in body:
        if len(row) <= column:
            raise VocabularyError(f"the row {shorten(separator.join(row))!r} of {shown} has no name: fill it in")
    return [row[column] for row in body]
