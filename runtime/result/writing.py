"""Writing a result's files: which names each kind may have, and pictures and JSON that appear whole or not at all."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.files import atomic_write, strict_json

# File name suffix -> Pillow's format and options.
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 4}),
    ".jpg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 92}),
}


def check_suffix(kind: str, path: str | os.PathLike[str]) -> None:
    """Raise OutputError if what is to be written, such as "overlay", "labels" or "json", cannot have this name."""
    suffix, name = Path(path).suffix.lower(), os.fspath(path)
    if kind == "overlay":
        picture_format(path)
    elif kind == "labels" and suffix != ".png":
        raise OutputError(f"cannot write labels to {name!r}: only PNG stores them exactly; name it .png")
    elif kind in ("json", "panoptic", "coco-panoptic") and suffix != ".json":
        raise OutputError(f"cannot write JSON to {name!r}: name it .json")


def picture_format(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Pillow's format and options for a picture of this name; raises OutputError for another suffix."""
    suffix = Path(path).suffix.lower()
    if suffix not in PICTURES:
        known = ", ".join(PICTURES)
        raise OutputError(f"cannot write a picture to {os.fspath(path)!r}: use one of the suffixes {known}")
    return PICTURES[suffix]


def write_picture(path: str | os.PathLike[str], picture: Any, form: str, options: dict[str, Any]) -> None:
    """Write an array or a PIL image; raises OutputError if its size does not fit the format."""
    from PIL import Image

    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    encoded = io.BytesIO()
    try:
        image.save(encoded, form, **options)
    except (OSError, ValueError) as error:  # JPEG and WebP limit width and height
        size = f"{image.width} x {image.height}"
        raise OutputError(f"cannot write a {form} of {size} pixels ({error}); use .png instead") from error
    with atomic_write(path) as file:
        file.write(encoded.getbuffer())


def write_json(path: str | os.PathLike[str], content: dict[str, Any], info: Mapping[str, Any] | None = None) -> None:
    """Write plain types as UTF-8 JSON, after `info` if given; raises OutputError for a suffix other than .json."""
    check_suffix("json", path)
    content = content if info is None else {"info": dict(info), **content}
    text = strict_json(content, indent=1)
    with atomic_write(path) as file:
        file.write(text + b"\n")
