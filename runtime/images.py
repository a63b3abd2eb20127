"""Loading images: any supported source -> uint8 RGB."""

import contextlib
import importlib
import io
import os
import struct
import sys
import warnings
from typing import Any, NamedTuple

import numpy as np

from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.files import open_regular
from vocabseg.runtime.image_limits import CountedReads, check_scans, check_text

MAX_PIXELS = 200_000_000
# In the order they are tried, PNG first since its reader is imported for writing anyway. No others: some of Pillow's
# readers run external programs (EPS) or are rarely fuzzed.
FORMATS = {
    "PNG": "PngImagePlugin",
    "JPEG": "JpegImagePlugin",
    "WEBP": "WebPImagePlugin",
    "TIFF": "TiffImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
}
# Suffixes of the files that count as images when a folder or an archive is searched.
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs",
})  # fmt: skip
_READABLE = "JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000 or AVIF"
_ORIENTATION = 0x0112
# TIFF 6.0: numbers of fields, and the values of them that matter here.
_BITS, _PHOTOMETRIC, _PLANAR, _FORMAT = 258, 262, 284, 339
_MIN_IS_WHITE, _SEPARATE, _SIGNED = 0, 2, 2


def pixel_limit() -> int:
    """Most pixels of an image: VOCABSEG_MAX_PIXELS, else MAX_PIXELS; raises ImageError for a setting that is none."""
    setting = os.environ.get("VOCABSEG_MAX_PIXELS", "").strip()
    if not setting:
        return MAX_PIXELS
    if not (setting.isascii() and setting.isdecimal() and 0 < len(setting) < 16 and int(setting)):
        raise ImageError(f"VOCABSEG_MAX_PIXELS is {setting[:40]!r}: give a whole number of pixels, at least 1")
    return int(setting)


def load_image(source: Any, max_pixels: int | None = None) -> np.ndarray:
    """Return the image in `source` as contiguous, writeable uint8 RGB (H, W, 3).

    `source` is a path, the bytes of an image file, a file opened in binary mode, a PIL image, or a uint8 array: RGB
    (H, W, 3), or grey (H, W) or (H, W, 1), which is repeated over the channels. An array that already has the right
    form is returned without a copy.

    The EXIF orientation of files and PIL images is applied. Only the first frame of an animation is used. An alpha
    channel is dropped, not composited (as by PIL's `convert("RGB")`, and so by the published code). 16-bit channels
    keep their high byte (value >> 8, as Pillow does for 16-bit RGB). Grey ones with no value above 255 are taken as
    8-bit numbers, with a warning for files. Grey, palette and CMYK images become RGB.

    Raises only ImageError: for an image that cannot be read, is empty, has more than `max_pixels` (by default
    VOCABSEG_MAX_PIXELS or 200 megapixels, of which Pillow takes 179 in a GIF, WebP or tile of a TIFF; checked in the
    header, before decoding) or takes too long to read for its size (`image_limits`), has pixels of unknown range
    (floating point, signed, 32-bit integers, or 12-bit numbers in 16 bits, which would come out black), or is a TIFF of
    16 bits with its channels apart, which Pillow misreads.
    """
    if max_pixels is None:
        max_pixels = pixel_limit()
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_stream(io.BytesIO(source), "the image file given as bytes", max_pixels)
    pillow = sys.modules.get("PIL.Image")  # if it was never imported, `source` is not a PIL image
    if pillow is not None and isinstance(source, pillow.Image):
        return _from_pillow(source, "the PIL image", max_pixels)
    if callable(getattr(source, "read", None)):
        return _from_file_object(source, max_pixels)
    raise ImageError(
        f"cannot load an image from a {type(source).__name__}; give a path, a PIL image or a uint8 RGB array (H, W, 3)"
    )


def _from_array(array: np.ndarray, max_pixels: int) -> np.ndarray:
    shape = " x ".join(map(str, array.shape)) or "no dimensions"
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        hint = "give (H, W, 3) RGB or (H, W) grey"
        if array.ndim == 3 and array.shape[2] == 4:
            hint = "drop the alpha channel with image[:, :, :3]"
        elif array.ndim == 3 and array.shape[0] in (1, 3):
            hint = "put the channels last with image.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "give one image at a time"
        raise ImageError(f"an array of shape {shape} is not an image; {hint}")
    if array.dtype != np.uint8:
        hint = "convert it with .astype(np.uint8)"
        if array.dtype.kind == "f":
            hint = "if its values are in 0..1, convert it with (image * 255).round().astype(np.uint8)"
        elif array.dtype == np.uint16:
            hint = "convert it with (image >> 8).astype(np.uint8)"
        elif array.dtype == np.bool_:
            hint = "convert it with image.astype(np.uint8) * 255"
        raise ImageError(f"the image array has dtype {array.dtype}, not uint8; {hint}")
    _check_size(array.shape[1], array.shape[0], "the image array", max_pixels)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.require(np.asarray(array), requirements=["C_CONTIGUOUS", "WRITEABLE"])


def _from_path(path: str | os.PathLike[str], max_pixels: int) -> np.ndarray:
    name = repr(os.fspath(path))
    try:
        stream = open_regular(path)
    except FileNotFoundError as error:
        raise ImageError(f"no such image file: {name}; check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder; give one image file") from error
    except PermissionError as error:
        raise ImageError(f"no permission to read {name}; change its access rights") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot open {name}: {_reason(error)}; check the path") from error
    with stream:
        return _from_stream(stream, name, max_pixels)


def _from_file_object(file: Any, max_pixels: int) -> np.ndarray:
    own = getattr(file, "name", None)
    name = repr(own) if isinstance(own, str) else "the given file object"
    try:
        content = file.read()
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"cannot read {name}: {_reason(error)}; open it in mode 'rb'") from error
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise ImageError(f"{name} returned {type(content).__name__}, not bytes; open it in mode 'rb'")
    return _from_stream(io.BytesIO(content), name, max_pixels)


def _from_stream(stream: Any, name: str, max_pixels: int) -> np.ndarray:
    try:
        image = _open_header(stream, name)
    except ImageError:
        raise
    except Exception as error:  # on a damaged header the readers may raise anything
        raise ImageError(f"{name} is damaged: {_reason(error)}; get an intact copy") from error
    return _from_pillow(image, name, max_pixels)


def _open_header(stream: Any, name: str) -> Any:
    """PIL.Image.open without its size limit, which warns and fails below 200 megapixels."""
    from PIL import Image

    prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"{name} is empty (0 bytes); get an intact copy")
    check_text(prefix, stream, name)
    stream = CountedReads(stream, name)
    reason = ""
    for image_format, plugin in FORMATS.items():
        if image_format not in Image.OPEN:
            with contextlib.suppress(ImportError):  # AVIF came with Pillow 11.3
                importlib.import_module(f"PIL.{plugin}")
        if image_format not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[image_format]
        accepted = accept(prefix) if accept else True
        if isinstance(accepted, str):  # the format was recognised, but this Pillow was built without it
            reason = f" ({' '.join(accepted.split())})"
        elif accepted:
            stream.seek(0)
            try:
                image = factory(stream, "")
                if image_format == "JPEG":
                    place = stream.tell()
                    stream.seek(0)
                    check_scans(stream.read(), name)
                    stream.seek(place)
                return image
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                reason = f" ({image_format} header: {_reason(error)})"
    raise ImageError(f"{name} is not an image that vocabseg can read{reason}; give {_READABLE}")


def _from_pillow(image: Any, name: str, max_pixels: int) -> np.ndarray:
    try:
        _check_size(image.width, image.height, name, max_pixels)
        samples = _samples(image, name)
        image.load()
        return _to_rgb(_upright(image), name, samples)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name} does not fit in memory; make it smaller") from error
    except Exception as error:  # every decoder raises its own kinds
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}; get an intact copy") from error


def _upright(image: Any) -> Any:
    from PIL import Image

    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # an image with damaged EXIF data is still usable
        return image
    return image.transpose(turn[orientation]) if orientation in turn else image


class _Samples(NamedTuple):
    """How a file holds its pixels: bits of a number, whether 0 is white, and whether it is a file at all."""

    bits: int = 16
    min_is_white: bool = False
    deep: bool = False
    file: bool = False


def _samples(image: Any, name: str) -> _Samples:
    """Looked up before decoding, since Pillow forgets it; raises ImageError for what Pillow decodes wrongly."""
    deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(_BITS, (16,)))
    if bits > 8 and tags.get(_PLANAR) == _SEPARATE:
        raise ImageError(
            f"{name} is a TIFF of {bits} bits with its channels apart; save it with interleaved channels, or 8 bits"
        )
    if _SIGNED in tags.get(_FORMAT, ()):
        raise ImageError(f"{name} has signed pixels, whose range is unknown; save it with 8 or 16 bits without sign")
    return _Samples(bits, tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE, deep, image.format is not None)


def _eight_bits(values: np.ndarray, name: str, samples: _Samples) -> np.ndarray:
    """Grey integers of up to 16 bits -> uint8; raises ImageError where their range cannot be told."""
    bits, most = samples.bits, values.max()
    if bits == 16 and most <= 0xFF:
        bits = 8
        if samples.file and most > 0:
            _warn(f"{name} has 16 bits per pixel and no value above {most}: taken as 8-bit numbers, 255 is white")
    elif bits == 16 and most <= 0xFFF:
        raise ImageError(
            f"{name} has 16 bits per pixel and no value above {most}, as 12-bit numbers have, and would be black; "
            "multiply them so that 65535 is white"
        )
    elif bits == 16 and most <= 0x3FFF:
        _warn(f"{name} has 16 bits per pixel and no value above {most}: it is dark, where 65535 is white")
    if samples.min_is_white:
        values = (1 << bits) - 1 - values.astype(np.int64)
    return (values >> (bits - 8)).astype(np.uint8)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=7)


def _to_rgb(image: Any, name: str, samples: _Samples) -> np.ndarray:
    mode = image.mode
    if mode == "F":
        raise ImageError(
            f"{name} has floating-point pixels, whose range is unknown; save it with 8 or 16 bits per channel"
        )
    if mode == "I" or mode.startswith("I;"):
        values = np.array(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError(f"{name} has 32-bit pixels of unknown range; save it with 8 or 16 bits per channel")
        return np.repeat(_eight_bits(values, name, samples)[:, :, None], 3, axis=2)
    if mode == "P" and "transparency" in image.info:
        image = image.copy()  # the caller's image keeps its transparency
        del image.info["transparency"]  # Pillow would warn about it
    if mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[mode])
    if image.mode != "RGB":
        try:
            image = image.convert("RGB")
        except ValueError as error:
            raise ImageError(f"{name} has colour mode {mode}, which Pillow cannot convert; save it as RGB") from error
    pixels = np.array(image, dtype=np.uint8)
    if samples.deep and pixels.max() <= 0xF:  # Pillow has kept the high bytes, and they hold next to nothing
        most = int(pixels.max()) << 8 | 0xFF
        _warn(f"{name} has 16 bits per channel and no value above {most}: it is black, or 12-bit numbers")
    return pixels


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty ({width} x {height} pixels); give an image of at least 1 x 1")
    if width * height > max_pixels:
        limit = f"{max_pixels / 10**6:g} megapixels"
        raise ImageError(f"{name} has {width} x {height} pixels, more than the limit of {limit}; make it smaller")


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.split())
