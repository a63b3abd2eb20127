"""Lists of images, CSV or Parquet -> items, with one piece of the list in memory at a time."""

import csv
import os
from collections.abc import Iterator, Sequence
from typing import Any

from vocabseg.batch.inputs.items import InputError, Item, is_image
from vocabseg.runtime.bundle.settings import nearest

# Names of a column of paths, where --column does not say it.
PATHS = ("path", "image", "file", "filename", "file_name", "image_path")
ID = "id"
ROWS = 8192
# Bytes of a CSV's first line that are looked at.
LONGEST_HEADER = 1 << 20


def list_items(path: str, column: str | None, id_column: str | None) -> Iterator[Item]:
    """The images that a list names; relative paths start from the list's folder.

    `column` holds the paths (default: the first of PATHS that exists, or the only column), `id_column` the ids
    (default: "id" if it exists, else the path as written is the id). A CSV with one column needs no line that names it:
    a first line with an image's path is an image. Raises InputError for a list that cannot be read, several columns
    without names, unknown columns, and rows without a path or id.
    """
    folder = os.path.dirname(path)
    row = 0
    for paths, ids in _columns(path, column, id_column):
        for written, identity in zip(paths, ids, strict=True):
            row += 1
            if written is None or not str(written).strip() or identity is None or not str(identity).strip():
                raise InputError(f"row {row} of {path!r} has no path or no id: fill it in, or remove the row")
            yield Item(str(identity), os.path.normpath(os.path.join(folder, str(written))))


def _columns(path: str, column: str | None, id_column: str | None) -> Iterator[tuple[list[Any], list[Any]]]:
    """Paths and ids, piece by piece."""
    import pyarrow

    try:
        names, pieces = (_parquet if path.lower().endswith(".parquet") else _csv)(path)
        chosen = _choose(path, names, column)
        identity = _known(path, names, id_column) if id_column is not None else ID if ID in names else chosen
        for piece in pieces:
            yield piece[chosen].to_pylist(), piece[identity].to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"the list {path!r} cannot be read: {lines[0]}") from None


def _parquet(path: str) -> tuple[Sequence[str], Iterator[Any]]:
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    return file.schema_arrow.names, file.iter_batches(ROWS)


def _csv(path: str) -> tuple[Sequence[str], Iterator[Any]]:
    from pyarrow import csv as arrow
    from pyarrow import string

    with open(path, "rb") as file:
        head = file.readline(LONGEST_HEADER)
    if not head.strip():
        raise InputError(f"the list {path!r} is empty: its first line names the columns, such as path,id")
    names, reading = _header(head), arrow.ReadOptions()
    images = [name for name in names if is_image(name) or os.path.isfile(os.path.join(os.path.dirname(path), name))]
    if images and len(names) == 1:
        names = [PATHS[0]]
        reading = arrow.ReadOptions(column_names=names)
    elif images:
        raise InputError(
            f"the first line of {path!r} holds the image {images[0]!r}, not the columns' names: put a line such as "
            "path,id above it"
        )
    types = {name: string() for name in names}  # or else 0017 would be read as a number
    options = arrow.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
    reader = arrow.open_csv(path, reading, arrow.ParseOptions(newlines_in_values=False), options)
    return reader.schema.names, iter(reader)


def _header(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")]))


def _choose(path: str, names: Sequence[str], column: str | None) -> str:
    if column is not None:
        return _known(path, names, column)
    found = [name for name in PATHS if name in names] or (list(names) if len(names) == 1 else [])
    if not found:
        raise InputError(
            f"no column of {path!r} is called {', '.join(PATHS)}: say with --column which of {_shown(names)} holds "
            "the paths"
        )
    return found[0]


def _known(path: str, names: Sequence[str], name: str) -> str:
    if name not in names:
        raise InputError(f"the list {path!r} has no column {name!r}: {_shown([nearest(name, names)])}")
    return name


def _shown(names: Sequence[str]) -> str:
    """Names of columns in one line, whatever they hold."""
    return " ".join(", ".join(names).split())
