"""Folders, globs, lists and tars -> items."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vocabseg.batch.inputs.items import InputError, Item, as_text, is_image
from vocabseg.batch.job import FILE, PLAN
from vocabseg.runtime.files import open_regular

LISTS = (".csv", ".parquet")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def find_items(inputs: Iterable[str | os.PathLike[str]], column: str | None, id_column: str | None) -> Iterator[Item]:
    """The images of all inputs, in an order that depends on nothing but the inputs.

    An input is a folder (its images at any depth), a glob ("**" crosses folders), a list (.csv or .parquet with a
    column of paths, relative ones starting from the list's folder), a tar in WebDataset's form or an image file. The id
    of an image is its path within the folder, or within the part of a glob before the first wildcard; in a list what
    `id_column` says, else the path as written; in a tar the names of the tar and its member. What lies in an output
    folder of a batch is not found by a folder or a glob: the label maps there are no images.

    Raises InputError for an input without an image, and for one that cannot be read.
    """
    for source in inputs:
        given, found = os.fspath(source), False
        for path, name in _files(given):
            for item in _items(path, name, column, id_column):
                found = True
                yield item
        if not found:
            raise InputError(
                f"no image found in {given!r}: no file in it, other than a batch's results, ends in .jpg, .png, .webp "
                "or the like"
            )


def _files(given: str) -> Iterator[tuple[str, str]]:
    """The files of an input, each with the name that its id is made of."""
    if os.path.isdir(given):
        yield from _folder(os.path.abspath(given))
    elif os.path.exists(given):
        yield given, os.path.basename(given)
    elif glob.has_magic(given):
        parts = Path(given).parts
        fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
        root = os.path.abspath(os.path.join("", *parts[:fixed]))
        outputs: dict[str, bool] = {}
        for match in sorted(glob.iglob(given, recursive=True)):
            known = is_image(match) or match.lower().endswith((*LISTS, ".tar", *COMPRESSED))
            if known and os.path.isfile(match) and not _in_output(os.path.dirname(os.path.abspath(match)), outputs):
                yield match, os.path.relpath(os.path.abspath(match), root)
    else:
        raise InputError(f"there is no {given!r}: give a folder, a glob, a .csv or .parquet list, a .tar or an image")


def _folder(root: str) -> Iterator[tuple[str, str]]:
    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename!r} cannot be read: {error.strerror}; change its access rights")

    outputs: dict[str, bool] = {}
    for place, folders, files in os.walk(root, onerror=refuse):
        if _in_output(place, outputs):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if is_image(name) and not name.startswith("."):
                path = os.path.join(place, name)
                yield path, os.path.relpath(path, root)


def _in_output(folder: str, known: dict[str, bool]) -> bool:
    """Whether an absolute folder is an output folder of a batch or inside one; `known` keeps the answers."""
    if folder not in known:
        above = os.path.dirname(folder)
        known[folder] = (os.path.isfile(os.path.join(folder, FILE)) and os.path.isdir(os.path.join(folder, PLAN))) or (
            above != folder and _in_output(above, known)
        )
    return known[folder]


def _items(path: str, name: str, column: str | None, id_column: str | None) -> Iterator[Item]:
    lower, absolute = path.lower(), os.path.abspath(path)
    if lower.endswith((*LISTS, ".tar")):
        try:
            open_regular(path).close()
        except OSError as error:
            raise InputError(
                f"{path!r} cannot be read: {error.strerror}; give a list or a tar that is a file"
            ) from None
    if lower.endswith(COMPRESSED):
        raise InputError(f"{path!r} is a compressed tar, whose parts cannot be read one by one: decompress it to .tar")
    if lower.endswith(".tar"):
        from vocabseg.batch.inputs.tars import tar_items

        yield from tar_items(absolute)
    elif lower.endswith(LISTS):
        from vocabseg.batch.inputs.lists import list_items

        yield from list_items(absolute, column, id_column)
    elif is_image(path):
        yield Item(as_text(name), absolute)
    else:
        raise InputError(f"{path!r} cannot be read: give a folder, a .csv or .parquet list, a .tar or an image")
