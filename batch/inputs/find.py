"""Folders, globs, lists and tars -> items."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vocabseg.batch.inputs.items import InputError, Item, LeftOut, as_text, ignored, is_image, not_an_image
from vocabseg.batch.job import FILE, PLAN
from vocabseg.runtime.files import open_regular

LISTS = (".csv", ".parquet")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def find_items(
    inputs: Iterable[str | os.PathLike[str]],
    column: str | None,
    id_column: str | None,
    left_out: LeftOut = ignored,
    output: str | os.PathLike[str] | None = None,
) -> Iterator[Item]:
    """The images of all inputs, in an order that depends on nothing but the inputs.

    An input is a folder (its images at any depth), a glob ("**" crosses folders), a list (.csv or .parquet with a
    column of paths, relative ones starting from the list's folder), a tar in WebDataset's form or an image file. The id
    of an image is its path within the folder, or within the part of a glob before the first wildcard; in a list what
    `id_column` says, else the path as written; in a tar the names of the tar and its member. `left_out` is told of
    every file that is not taken. Nothing is looked for in the folder `output`, nor in the output folders of other
    batches, whose label maps are no images.

    Raises InputError for an input without an image, and for one that cannot be read.
    """
    skipped = None if output is None else os.path.realpath(output)
    for source in inputs:
        given, found = os.fspath(source), False
        reasons: list[str] = []

        def note(path: str, reason: str, reasons: list[str] = reasons) -> None:
            reasons[:] = [f": {path!r} was left out ({reason})"]  # the last one stands for all
            left_out(path, reason)

        for path, name in find_files(given, note, skipped):
            for item in _items(path, name, column, id_column, note):
                found = True
                yield item
        if not found:
            why = reasons[-1] if reasons else ": no file in it (but a batch's results) ends in .jpg, .png or the like"
            raise InputError(f"no image found in {given!r}{why}")


def find_files(given: str, left_out: LeftOut = ignored, skipped: str | None = None) -> Iterator[tuple[str, str]]:
    """The files of an input, each with the name that its id is made of: its path within the folder or the glob.

    `left_out` is told of files that are neither images nor, in a glob, lists or tars; the folder `skipped`, a real
    path, is not searched. Raises InputError for an input that is not there.
    """
    if os.path.isdir(given):
        yield from _folder(os.path.abspath(given), left_out, skipped)
    elif os.path.exists(given):
        yield given, os.path.basename(given)
    elif glob.has_magic(given):
        parts = Path(given).parts
        fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
        root = os.path.abspath(os.path.join("", *parts[:fixed]))
        outputs: dict[str, bool] = {}
        apart = skipped is not None and not Path(os.path.realpath(root)).is_relative_to(skipped)
        for match in sorted(glob.iglob(given, recursive=True)):
            if apart and Path(os.path.realpath(match)).is_relative_to(str(skipped)):
                continue
            if _in_output(os.path.dirname(os.path.abspath(match)), outputs):
                continue
            if os.path.isdir(match):
                if "**" not in given:
                    left_out(match, "a folder: give it by itself, or write ** for all below")
            elif not os.path.isfile(match):
                left_out(match, "a pipe or a device, not a file")
            elif is_image(match) or match.lower().endswith((*LISTS, ".tar", *COMPRESSED)):
                yield match, os.path.relpath(os.path.abspath(match), root)
            else:
                left_out(match, not_an_image(match))
    else:
        raise InputError(f"there is no {given!r}: give a folder, a glob, a .csv or .parquet list, a .tar or an image")


def _folder(root: str, left_out: LeftOut, skipped: str | None) -> Iterator[tuple[str, str]]:
    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename!r} cannot be read: {error.strerror}; change its access rights")

    outputs: dict[str, bool] = {}
    for place, folders, files in os.walk(root, onerror=refuse):
        if _in_output(place, outputs):
            folders.clear()
            continue
        below = [os.path.join(place, name) for name in sorted(folders) if not name.startswith(".")]
        for path in filter(os.path.islink, below):
            left_out(path, "a link to a folder: give that folder by itself")
        folders[:] = [os.path.basename(path) for path in below if os.path.realpath(path) != skipped]
        for name in sorted(files):
            path = os.path.join(place, name)
            if name.startswith("."):
                if is_image(name):
                    left_out(path, "hidden: its name starts with a dot")
            elif is_image(name):
                yield path, os.path.relpath(path, root)
            else:
                left_out(path, not_an_image(name))


def _in_output(folder: str, known: dict[str, bool]) -> bool:
    """Whether an absolute folder is an output folder of a batch or inside one; `known` keeps the answers."""
    if folder not in known:
        above = os.path.dirname(folder)
        known[folder] = (os.path.isfile(os.path.join(folder, FILE)) and os.path.isdir(os.path.join(folder, PLAN))) or (
            above != folder and _in_output(above, known)
        )
    return known[folder]


def _items(path: str, name: str, column: str | None, id_column: str | None, left_out: LeftOut) -> Iterator[Item]:
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

        yield from tar_items(absolute, left_out)
    elif lower.endswith(LISTS):
        from vocabseg.batch.inputs.lists import list_items

        yield from list_items(absolute, column, id_column)
    elif is_image(path):
        yield Item(as_text(name), absolute)
    else:
        raise InputError(f"{path!r} cannot be read: give a folder, a .csv or .parquet list, a .tar or an image")
