"""What a batch is made of: folders, globs, lists and tars -> items, each with an id of its own."""

import glob
import os
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from vocabseg.runtime.errors import VocabsegError

# Endings of the formats that `load_image` reads.
_ENDINGS = "jpg jpeg jpe jfif png webp tif tiff bmp gif ppm pgm pbm pnm jp2 j2k jpx avif"
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
LISTS = frozenset((".csv", ".parquet"))
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class InputError(VocabsegError):
    """Input that names no image, cannot be read, or names one twice."""


class Item(NamedTuple):
    """One image: a file, or `size` bytes from `offset` on within a tar. The id does not depend on the other images."""

    id: str
    path: str
    offset: int | None = None
    size: int | None = None

    def read(self) -> bytes:
        """The image file's bytes; raises OSError."""
        with open(self.path, "rb") as file:
            if self.offset is None:
                return file.read()
            file.seek(self.offset)
            return file.read(self.size)

    @property
    def digest(self) -> int:
        """64 bits of the id."""
        return _digest(self.id)

    @property
    def place(self) -> int:
        """64 bits of where the image lies."""
        return _digest(f"{self.path}\0{self.offset}")


def is_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def find_items(inputs: Iterable[str | os.PathLike[str]], column: str | None, id_column: str | None) -> Iterator[Item]:
    """The images of all inputs, in an order that depends on nothing but the inputs.

    An input is a folder (its images at any depth), a glob ("**" crosses folders), a list (.csv or .parquet with a
    column of paths, relative ones starting from the list's folder), a tar in WebDataset's form or an image file. The id
    of an image is its path within the folder, or within the part of a glob before the first wildcard; in a list what
    `id_column` says, else the path as it is written; in a tar the tar's and the member's name.

    Raises InputError for an input without an image, and for one that cannot be read.
    """
    for source in inputs:
        given, found = os.fspath(source), False
        for item in _expand(given, column, id_column):
            found = True
            yield item
        if not found:
            raise InputError(f"no image found in {given!r}: no file in it ends in .jpg, .png, .webp and the like")


def _expand(given: str, column: str | None, id_column: str | None) -> Iterator[Item]:
    if os.path.isdir(given):
        yield from _folder(given)
    elif os.path.exists(given):
        yield from _file(given, os.path.basename(given), column, id_column)
    elif glob.has_magic(given):
        yield from _glob(given, column, id_column)
    else:
        raise InputError(f"there is no {given!r}: give a folder, a glob, a .csv or .parquet list, a .tar or an image")


def _folder(folder: str) -> Iterator[Item]:
    root = os.path.abspath(folder)

    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename!r} cannot be read: {error.strerror}; change its access rights")

    for place, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if is_image(name) and not name.startswith("."):
                path = os.path.join(place, name)
                yield Item(_text(os.path.relpath(path, root)), path)


def _glob(pattern: str, column: str | None, id_column: str | None) -> Iterator[Item]:
    parts = Path(pattern).parts
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    root = os.path.abspath(os.path.join("", *parts[:fixed]))
    for match in sorted(glob.iglob(pattern, recursive=True)):
        if os.path.isfile(match):
            name = os.path.relpath(os.path.abspath(match), root)
            known = is_image(match) or Path(match).suffix.lower() in (*LISTS, ".tar") or match.endswith(_COMPRESSED)
            if known:
                yield from _file(match, name, column, id_column)


def _file(path: str, name: str, column: str | None, id_column: str | None) -> Iterator[Item]:
    lower = path.lower()
    if lower.endswith(_COMPRESSED):
        raise InputError(f"{path!r} is a compressed tar, of which no part can be read alone: decompress it to .tar")
    if lower.endswith(".tar"):
        from vocabseg.batch.tars import tar_items

        yield from tar_items(os.path.abspath(path))
    elif lower.endswith(tuple(LISTS)):
        from vocabseg.batch.lists import list_items

        yield from list_items(os.path.abspath(path), column, id_column)
    elif is_image(path):
        yield Item(_text(name), os.path.abspath(path))
    else:
        raise InputError(f"{path!r} is none of what can be read: a folder, a .csv or .parquet list, a .tar or an image")


def _text(name: str) -> str:
    """A file's name as text with "/" between folders; bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace(os.sep, "/")


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
