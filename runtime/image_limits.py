"""What an image file may ask of those who read it, beside its number of pixels: small files can take minutes."""

import os
import re
from typing import Any

from vocabseg.runtime.errors import ImageError

# A progressive JPEG of ten scans is usual; each goes over all pixels. libtiff's limit for the JPEGs in a TIFF.
MAX_SCANS = 100
# Pillow reads headers in Python, and some of them byte by byte: usual files take some hundred reads.
READS = 50_000
BYTES_PER_READ = 256

# Pillow reads numbers written as text (PBM, PGM and PPM of the kinds P1 to P3) at some 3 MB a second.
MAX_TEXT_BYTES = 8 << 20

# A marker in a JPEG: neither a 0xff of the pixels, which a zero follows, nor a restart, nor a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = (0x01, 0xD8)


class CountedReads:
    """A binary file that raises ImageError once it is read in more and smaller parts than an honest one would be."""

    def __init__(self, stream: Any, name: str):
        self._stream, self._name = stream, name
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        self._left = READS + size // BYTES_PER_READ

    def read(self, *size: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageError(f"{self._name} consists of too many tiny parts, or has a header without end: save it anew")
        return self._stream.read(*size)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def check_text(prefix: bytes, stream: Any, name: str) -> None:
    """Raise ImageError for a PBM, PGM or PPM of more than MAX_TEXT_BYTES that holds its pixels as text."""
    if prefix[:2] in (b"P1", b"P2", b"P3"):
        size = stream.seek(0, os.SEEK_END)
        if size > MAX_TEXT_BYTES:
            raise ImageError(
                f"{name} holds its pixels as text, {size} bytes, more than {MAX_TEXT_BYTES}: save it in binary form"
            )


def check_scans(content: bytes, name: str) -> None:
    """Raise ImageError for a JPEG of more than MAX_SCANS scans."""
    if content.count(bytes([0xFF, _SCAN])) <= MAX_SCANS:
        return
    scans, place = 0, 0
    while (found := _MARKER.search(content, place)) is not None and (marker := content[found.end() - 1]) != _END:
        place = found.end()
        scans += marker == _SCAN
        if scans > MAX_SCANS:
            raise ImageError(
                f"{name} is a JPEG of more than {MAX_SCANS} scans, each of which goes over it: save it anew"
            )
        if marker not in _WITHOUT_LENGTH:
            place += int.from_bytes(content[place : place + 2], "big")
