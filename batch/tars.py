"""Tars in WebDataset's form -> items: only the headers are read, the images where they lie, when their turn comes."""

import os
import tarfile
from collections.abc import Iterator

from vocabseg.batch.inputs import InputError, Item, is_image

TarFault = (tarfile.TarError, OSError, EOFError, ValueError)


def tar_items(path: str) -> Iterator[Item]:
    """The images of a tar: members whose name has a single ending, one of an image, such as "a/000017.jpg".

    With WebDataset, "000017.seg.png" is another part of sample "000017" (its ending is "seg.png"), and not taken.
    Raises InputError for what is no tar, or ends too early.
    """
    name = os.path.basename(path)
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else the headers of all members stay in memory
                last = member.name.rpartition("/")[2]
                if member.isreg() and last.count(".") == 1 and not last.startswith(".") and is_image(last):
                    yield Item(_text(f"{name}/{member.name}"), path, member.offset_data, member.size)
            if os.path.getsize(path) < tar.offset:
                raise tarfile.ReadError("unexpected end of data")
    except TarFault as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the tar {path!r} cannot be read: {reason}; get a whole copy of it") from None


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
