"""Finds a font on this machine that can draw a given text."""

import functools
import os
import sys
from pathlib import Path
from typing import Any

# File name prefixes, in order of preference; together they cover most scripts on most systems.
FAMILIES = (
    "dejavusans.",
    "notosans-regular",
    "notosanscjk",
    "notosans",
    "segoeui.",
    "arialuni",
    "arial unicode",
    "pingfang",
    "hiragino",
    "msyh.",
    "meiryo.",
    "malgun.",
    "nirmala",
    "leelawui.",
    "wqy-",
    "droidsansfallback",
    "sourcehansans",
    "freesans.",
    "unifont",
)
# Not a character: every font draws its "missing glyph" sign for it.
MISSING = "\U0010ffff"


def font_for(text: str, size: int) -> Any:
    """The first font that has every character of `text`, else the one that has the most.

    Pillow's own font comes first, so that Latin text looks the same on every machine; it is the only one if no other
    font is installed. `size` is in pixels.
    """
    characters = set(text)
    best, most = _open(None, size), -1
    for path in (None, *_installed()):
        try:
            font = _open(path, size)
            covered = sum(_has(path, character) for character in characters)
        except (OSError, ValueError):  # a damaged font file, or one without outlines
            continue
        if covered > most:
            best, most = font, covered
        if covered == len(characters):
            break
    return best


def _folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts", home / ".fonts"]


@functools.cache
def _installed() -> tuple[Path, ...]:
    found: list[tuple[int, str, Path]] = []
    for folder in _folders():
        for parent, _, names in os.walk(folder):
            for name in names:
                lower = name.lower()
                if not lower.endswith((".ttf", ".ttc", ".otf")) or "bold" in lower or "italic" in lower:
                    continue
                rank = next((rank for rank, family in enumerate(FAMILIES) if lower.startswith(family)), None)
                if rank is not None:
                    found.append((rank, lower, Path(parent) / name))
    return tuple(path for _, _, path in sorted(found))


@functools.lru_cache(64)
def _open(path: Path | None, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


@functools.lru_cache(10_000)
def _has(path: Path | None, character: str) -> bool:
    return character.isspace() or _shape(path, character) != _shape(path, MISSING)


def _shape(path: Path | None, character: str) -> tuple[Any, bytes]:
    mask = _open(path, 16).getmask(character)
    return mask.size, bytes(mask)
