"""Requests that no server can answer: 200 of them, each with a name."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.serving.servers import SCENE

COUNT = 200


class Bad:
    """A request: tensors by name as (array, Triton's type, shape), its parameters, and the outputs asked for."""

    def __init__(
        self, name: str, inputs: dict[str, tuple[np.ndarray, str]], parameters: Any = None, outputs: Any = None
    ):
        self.name = name
        self.inputs = inputs
        self.parameters = parameters
        self.outputs = outputs


def names(*given: str | bytes) -> tuple[np.ndarray, str]:
    content = [name if isinstance(name, bytes) else name.encode() for name in given]
    return np.array([content], object).reshape(1, len(content)), "BYTES"


def file(content: bytes) -> tuple[np.ndarray, str]:
    return np.array([[content]], object), "BYTES"


def malformed() -> list[Bad]:
    """All of them, always the same."""
    found = list(_all())
    assert len(found) == COUNT, len(found)
    return found


def _all() -> Iterator[Bad]:
    scene = SCENE.read_bytes()
    good = names("grass", "sky")
    jpeg = _jpeg()
    for kept in range(1, 41):
        yield Bad(
            f"JPEG cut after {kept} of 42 parts", {"IMAGE": file(jpeg[: len(jpeg) * kept // 42]), "CLASSES": good}
        )
    for kept in range(0, 20):
        yield Bad(
            f"PNG cut after {kept} of 20 parts", {"IMAGE": file(scene[: len(scene) * kept // 20]), "CLASSES": good}
        )
    generator = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 16, 100, 1000, 10_000, 100_000, 1_000_000):
        yield Bad(f"{size} random bytes", {"IMAGE": file(generator.bytes(size)), "CLASSES": good})
    for width, height in ((60_000, 60_000), (100_000, 1_000), (2_000, 2_001), (65_535, 65_535), (2**31 - 1, 2**31 - 1)):
        yield Bad(f"PNG that says {width} x {height}", {"IMAGE": file(_bomb(width, height)), "CLASSES": good})
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    for dtype, kind in (
        (np.float32, "FP32"), (np.float64, "FP64"), (np.float16, "FP16"), (np.int8, "INT8"), (np.int16, "INT16"),
        (np.int32, "INT32"), (np.int64, "INT64"), (np.uint16, "UINT16"), (np.uint32, "UINT32"), (bool, "BOOL"),
    ):  # fmt: skip
        yield Bad(f"pixels of {kind}", {"PIXELS": (pixels.astype(dtype), kind), "CLASSES": good})
        yield Bad(f"names of {kind}", {"PIXELS": (pixels, "UINT8"), "CLASSES": (np.zeros((1, 2), dtype), kind)})
    for shape in (
        (8, 8, 3), (1, 8, 8), (1, 8, 8, 1), (1, 8, 8, 4), (1, 3, 8, 8), (8,), (1, 1, 8, 8, 3), (0, 8, 8, 3),
        (1, 0, 8, 3), (1, 8, 0, 3), (99, 8, 8, 3), (1, 2001, 2000, 3), (1, 1, 4_000_001, 3), (1, 8, 8, 0),
    ):  # fmt: skip
        yield Bad(f"pixels of shape {shape}", {"PIXELS": (np.zeros(shape, np.uint8), "UINT8"), "CLASSES": good})
    for shape in ((2, 1), (1, 2), (1,), (1, 0)):
        array = np.full(shape, b"x", object)
        yield Bad(f"files of shape {array.shape}", {"IMAGE": (array, "BYTES"), "CLASSES": good})
    yield Bad("no image", {"CLASSES": good})
    yield Bad("two kinds of image", {"IMAGE": file(scene), "PIXELS": (pixels, "UINT8"), "CLASSES": good})
    yield Bad("an unknown tensor", {"PICTURE": file(scene)})
    picture = {"PIXELS": (pixels, "UINT8")}
    yield Bad("0 names", {**picture, "CLASSES": names()})
    for count in (501, 1_000, 10_000, 100_000):
        yield Bad(f"{count} names", {**picture, "CLASSES": names(*(f"name {index}" for index in range(count)))})
    for length in (513, 1_000, 5_000, 100_000, 1_000_000):
        yield Bad(f"a name of {length} characters", {**picture, "CLASSES": names("a" * length)})
        yield Bad(f"a name of {length} words", {**picture, "CLASSES": names("sky", "a " * length + "b")})
        yield Bad(f"a name of {length} smileys", {**picture, "CLASSES": names("\U0001f600" * length)})
    yield Bad("a name of too many tokens", {**picture, "CLASSES": names("one two three " * 30)})
    for content in (
        b"\xff", b"\xc3", b"caf\xe9", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80" * 100, b"\xfe\xff\x00a",
        b"\xc0\xaf", b"\xe2\x82", b"sky\xff", "Gr\xfcn".encode("latin-1"), "sky".encode("utf-16"), b"\x00\xff" * 200,
    ):  # fmt: skip
        yield Bad(f"a name of the bytes {content[:8]!r}", {**picture, "CLASSES": names("sky", content)})
    for given in (("sky", "sky"), ("",), ("sky", " "), ("sky", "\t\n"), ("a", "b", "a ")):
        yield Bad(f"the names {given}", {**picture, "CLASSES": names(*given)})
    for shape in ((1, 1, 2), (2, 2), (2,), (0, 2)):
        array = np.zeros(shape, object)
        array[:] = b"sky"
        yield Bad(f"names of shape {shape}", {**picture, "CLASSES": (array, "BYTES")})
    good_inputs = {**picture, "CLASSES": good}
    for parameters in (
        {"vocabulary": "road"}, {"colour": "red"}, {"things": "grass"}, {"things": "{"}, {"things": "{}"},
        {"things": 3}, {"things": '["tree"]'}, {"things": "[7]"}, {"things": "[-1]"}, {"things": "[" * 100_000},
        {"seen": "[true]"}, {"seen": '["tree"]'}, {"seen": "[1, 2]"}, {"templates": "[]"},
        {"templates": '["no place"]'}, {"templates": '["{} {}"]'}, {"templates": '["{} in {braces}"]'},
        {"templates": "[1]"}, {"templates": "a {}"}, {"object_mask_threshold": "high"}, {"overlap_threshold": True},
    ):  # fmt: skip
        outputs = ["PANOPTIC"]
        shown = {key: str(value)[:20] for key, value in parameters.items()}
        yield Bad(f"the parameters {shown}", good_inputs, parameters, outputs)
    yield Bad("an unknown vocabulary", picture, {"vocabulary": "sea"})
    yield Bad("a vocabulary by the name of a file", picture, {"vocabulary": "@/etc/passwd"})
    yield Bad("an unknown output", good_inputs, None, ["PICTURE"])
    yield Bad("an output in the wrong case", good_inputs, None, ["labels"])
    for extra in range(DAMAGES):
        yield Bad(f"PNG with damaged part {extra}", {"IMAGE": file(_damaged(scene, extra)), "CLASSES": good})


DAMAGES = 16


def _jpeg() -> bytes:
    picture = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _bomb(width: int, height: int) -> bytes:
    """A few bytes that say they unpack to a picture of that size."""
    rows = zlib.compress(bytes(100_000), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _damaged(content: bytes, part: int) -> bytes:
    """The PNG with 64 bytes of its compressed pixels overwritten, which zlib's or PNG's checks find."""
    place = 200 + part * (len(content) - 400) // DAMAGES
    return content[:place] + bytes(64) + content[place + 64 :]
