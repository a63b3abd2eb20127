"""Tars in WebDataset's form -> items: only the headers are read; the images are read in place, later."""

import os
import tarfile
from collections.abc import Iterator

from vocabseg.batch.inputs.items import InputError, Item, as_text, is_image


def tar_items(path: str) -> Iterator[Item]:
    """The images of a tar: members whose name has one ending, that of an image, such as "a/000017.jpg".

    With WebDataset, "000017.seg.png" is another part of sample "000017" (its ending is "seg.png"), and is not taken.
    Raises InputError for a file that is no tar, or ends too early.
    """
    name = os.path.basename(path)
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else the headers of all members stay in memory
                last = member.name.rpartition("/")[2]
                if member.isreg() and last.count(".") == 1 and not last.startswith(".") and is_image(last):
                    yield Item(as_text(f"{name}/{member.name}"), path, member.offset_data, member.size)
            if os.path.getsize(path) < tar.offset:
                raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the tar {path!r} cannot be read: {reason}; get a complete copy of it") from None
