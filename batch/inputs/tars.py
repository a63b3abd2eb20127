"""Tars in WebDataset's form -> items: only the headers are read; the images are read in place, later."""

import os
import tarfile
from collections.abc import Iterator

from vocabseg.batch.inputs.items import InputError, Item, LeftOut, as_text, ignored, is_image, not_an_image


def tar_items(path: str, left_out: LeftOut = ignored) -> Iterator[Item]:
    """The images of a tar, such as "a/000017.jpg" or "a/scan_2020.01.02.png".

    With WebDataset a sample is what stands before the first dot of a name: where "000017.jpg" is there,
    "000017.seg.png" is another part of it, and is not taken. `left_out` is told of such parts, of hidden images and
    links, and of files in no sample with an image. Takes some 500 bytes of memory for each file in the tar.

    Raises InputError for a file that is no tar, or ends too early.
    """
    members = list(_members(path))
    plain = {_sample(name) for name, _, _ in members if _is_open_image(name) and _last(name).count(".") == 1}
    taken = {_sample(name) for name, _, _ in members if _is_open_image(name)}
    for name, offset, size in members:
        source = as_text(f"{os.path.basename(path)}/{name}")
        if offset is None:
            left_out(source, "a link within the tar")
        elif is_image(name) and not _is_open_image(name):
            left_out(source, "hidden: its name starts with a dot")
        elif is_image(name) and _last(name).count(".") > 1 and _sample(name) in plain:
            left_out(source, "another part of a sample that has an image")
        elif is_image(name):
            yield Item(source, path, offset, size)
        elif _sample(name) not in taken and not _last(name).startswith("."):
            left_out(source, not_an_image(name))


def _members(path: str) -> Iterator[tuple[str, int | None, int]]:
    """Name, offset and size of each file; a link has no offset."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else the headers of all members stay in memory
                if member.isreg() or member.issym() or member.islnk():
                    yield member.name, member.offset_data if member.isreg() else None, member.size
            if os.path.getsize(path) < tar.offset:
                raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the tar {path!r} cannot be read: {reason}; get a complete copy of it") from None


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _sample(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _is_open_image(name: str) -> bool:
    return is_image(name) and not _last(name).startswith(".")
