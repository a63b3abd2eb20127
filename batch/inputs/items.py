"""Items: the images of a batch, each with an id of its own."""

import os
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from vocabseg.runtime.errors import VocabsegError
from vocabseg.runtime.files import open_regular
from vocabseg.runtime.images import IMAGE_SUFFIXES

# Called with a file or folder among the inputs that is not taken, and the reason.
LeftOut = Callable[[str, str], None]


def ignored(source: str, reason: str) -> None:
    """Record nothing."""


class InputError(VocabsegError):
    """Input that names no image, cannot be read, or names an image twice."""


class Item(NamedTuple):
    """One image: a file, or `size` bytes from `offset` on in a tar. Its id does not depend on the other images."""

    id: str
    path: str
    offset: int | None = None
    size: int | None = None

    def read(self) -> bytes:
        """The image file's bytes; raises OSError."""
        with open_regular(self.path) as file:
            file.seek(self.offset or 0)
            return file.read(-1 if self.size is None else self.size)

    @property
    def digest(self) -> int:
        """64 bits of the id."""
        return _digest(self.id)

    @property
    def place(self) -> int:
        """64 bits of where the image is."""
        return _digest(f"{self.path}\0{self.offset}")


def is_image(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def not_an_image(name: str) -> str:
    """Why a file without an image's suffix is left out."""
    ending = os.path.splitext(name)[1].lower()
    return f"{ending} is no image format that can be read" if ending else "its name has no ending that tells the format"


def as_text(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
