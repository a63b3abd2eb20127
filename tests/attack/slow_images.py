"""Small image files that take long to read, and honest ones that look like them."""

import io
import struct
import zlib

from PIL import Image

PIXELS = b"".join(b"\0" + bytes(24) for _ in range(8))


def jpeg(scans: int = 0, side: int = 16) -> bytes:
    """A progressive JPEG with so many scans more than usual, which refine what is refined already."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 40)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + content[-2:]


def segments(count: int, segment: bytes) -> bytes:
    """A JPEG with so many more segments before its first."""
    content = jpeg()
    return content[:2] + segment * count + content[2:]


def png(before: bytes = b"", after: bytes = b"", pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    pixels = pixels or chunk(b"IDAT", zlib.compress(PIXELS))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def gif(extensions: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "GIF")
    content = buffer.getvalue()
    place = content.index(b"\x2c", 13)
    return content[:place] + extensions + content[place:]


def ppm(header: bytes) -> bytes:
    return b"P6" + header + b"8 8 255\n" + bytes(192)


MILLION = 1_000_000
# By name, each of a few megabytes or less.
SLOW = {
    "JPEG of 1,000 scans": lambda: jpeg(1000, 500),
    "JPEG of empty comments": lambda: segments(MILLION, b"\xff\xfe\x00\x02"),
    "JPEG of empty profiles": lambda: segments(MILLION, b"\xff\xe1\x00\x02"),
    "JPEG of fill bytes": lambda: segments(MILLION, b"\xff"),
    "PPM of blanks": lambda: ppm(b" " * MILLION),
    "PPM of one comment": lambda: ppm(b"\n#" + b"a" * MILLION + b"\n"),
    "PPM of text": lambda: b"P3 2000 1500 255\n" + b"1 " * 9_000_000,
    "PNG of chunks before": lambda: png(before=chunk(b"abCd", b"") * (MILLION // 4)),
    "PNG of chunks after": lambda: png(after=chunk(b"abCd", b"") * (MILLION // 4)),
    "PNG of empty pixels": lambda: png(pixels=chunk(b"IDAT", b"") * MILLION + chunk(b"IDAT", zlib.compress(PIXELS))),
    "GIF of comments": lambda: gif(b"\x21\xfe\x01a\x00" * MILLION),
    "GIF of one comment": lambda: gif(b"\x21\xfe" + b"\x01a" * MILLION + b"\x00"),
}
HONEST = {
    "JPEG of 90 scans more": lambda: jpeg(90),
    "JPEG with a film behind it": lambda: jpeg() + bytes(2) + b"\xff\xda\x00\x02" * 1000,
    "JPEG with small pictures in its profile": lambda: segments(
        3, b"\xff\xe1\xff\xff" + b"\xff\xda\x00" * 21_844 + b"\0"
    ),
    "PNG of many small chunks": lambda: png(before=chunk(b"abCd", bytes(1000)) * 20_000),
    "PPM of little text": lambda: b"P3 8 8 255\n" + b"17 " * 192,
    "PPM with a comment": lambda: ppm(b"\n#" + b"a" * 10_000 + b"\n"),
}
