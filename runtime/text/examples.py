"""Example images: classes that are shown instead of named."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.errors import ImageError, VocabularyError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.text.prompts import shorten

KEYS = ("image", "mask", "box")


@dataclass(frozen=True, eq=False)
class ExampleImage:
    """What an example shows: pixels (H, W, 3) uint8 RGB, mask (H, W) bool; compared by value."""

    pixels: np.ndarray
    mask: np.ndarray
    digest: str

    @classmethod
    def of(cls, source: Any, name: str, folder: Path | None = None) -> "ExampleImage":
        """An image of class `name`: all of it, or where it is opaque; or a dictionary with "image" and "mask" or "box".

        Images are what `load_image` takes, paths relative to `folder`; a mask an image of the same size, white (128 and
        more) where the object is, or a bool array; a box [x1, y1, x2, y2] in pixels, x2 and y2 exclusive. Raises
        VocabularyError for one that cannot be used.
        """
        if isinstance(source, ExampleImage):
            return source
        parts = dict(source) if isinstance(source, Mapping) else {"image": source}
        what = f"the example of {shorten(name)!r}"
        if "image" not in parts or not set(parts) <= set(KEYS):
            raise VocabularyError(f"{what} has the entries {shorten(str(list(parts)))}: give image, and mask or box")
        try:
            image = _placed(parts["image"], folder)
            pixels = load_image(image)
            if parts.get("mask") is not None:
                mask = _mask(_placed(parts["mask"], folder))
            elif parts.get("box") is not None:
                mask = _boxed(parts["box"], pixels.shape[:2], what)
            else:
                mask = _opaque(image, pixels.shape[:2])
        except ImageError as error:
            raise VocabularyError(f"{what}: {error}") from None
        if mask.shape != pixels.shape[:2] or not mask.any():
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            fault = "is empty" if mask.shape == pixels.shape[:2] else f"has {mask.shape[1]} x {mask.shape[0]} pixels"
            raise VocabularyError(f"{what} has {size} pixels, but its mask {fault}: give one that fits")
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes() + np.packbits(mask).tobytes())
        return cls(pixels, mask, digest.hexdigest())

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, ExampleImage) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)


def checked_examples(values: Any, folder: Path | None = None) -> dict[str, tuple[ExampleImage, ...]]:
    """The images of each class, from lists of what `ExampleImage.of` takes, in `folder`; raises VocabularyError."""
    if not isinstance(values, Mapping) or not values or not all(isinstance(name, str) for name in values):
        raise VocabularyError(
            'the examples are no dictionary of names and images: give {"my logo": ["a.png", "b.png"]}'
        )
    found = {}
    for name, images in values.items():
        if not isinstance(images, list | tuple) or not images:
            raise VocabularyError(f"the class {shorten(name)!r} has no list of example images: give one or more")
        found[name] = tuple(ExampleImage.of(image, name, folder) for image in images)
    return found


def _placed(source: Any, folder: Path | None) -> Any:
    return folder / source if folder is not None and isinstance(source, str) else source


def _mask(source: Any) -> np.ndarray:
    if isinstance(source, np.ndarray) and source.dtype == bool and source.ndim == 2:
        return source
    return load_image(source)[..., 0] >= 128


def _boxed(box: Any, size: tuple[int, ...], what: str) -> np.ndarray:
    mask = np.zeros(size, bool)
    numbers = list(box) if isinstance(box, list | tuple) else []
    if len(numbers) != 4 or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise VocabularyError(f"{what} has the box {box!r:.60}: give [x1, y1, x2, y2] in pixels")
    x1, y1, x2, y2 = numbers
    mask[y1:y2, x1:x2] = True
    return mask


def _opaque(image: Any, size: tuple[int, ...]) -> np.ndarray:
    """Where an image with an alpha channel is opaque; everywhere in others. `load_image` has accepted it."""
    from PIL import Image

    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            alpha = np.asarray(opened.getchannel("A")) if "A" in opened.getbands() else None
    else:
        alpha = (
            np.asarray(image.getchannel("A")) if isinstance(image, Image.Image) and "A" in image.getbands() else None
        )
    opaque = None if alpha is None else alpha >= 128
    # An orientation turns the pixels but not the channel that is read here.
    return opaque if opaque is not None and opaque.shape == size and opaque.any() else np.ones(size, bool)
