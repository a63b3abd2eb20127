"""The legend: which colour is which class, and how much of the picture it covers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vocabseg.runtime.result.colours import Colour
from vocabseg.runtime.result.lettering.fonts import font_for

MAX_ENTRIES = 20
SMALLEST_TEXT = 12  # pixels
TEXT_SHARE = 0.027  # text height over the square root of the picture's area: 14 pixels on 640 x 427
# Longer names are cut before they are measured; no legend is wide enough for them.
LONGEST_NAME = 200


@dataclass(frozen=True)
class Theme:
    """Colours of the panel, RGB."""

    background: Colour
    text: Colour
    faint: Colour
    outline: Colour


THEMES = {
    "light": Theme(background=(250, 250, 249), text=(28, 29, 32), faint=(112, 114, 120), outline=(196, 197, 200)),
    "dark": Theme(background=(24, 25, 28), text=(238, 238, 240), faint=(152, 154, 160), outline=(78, 80, 86)),
}


@dataclass(frozen=True)
class LegendEntry:
    """A line of the legend; without a colour the swatch stays empty, and without a share no percentage is shown."""

    name: str
    colour: Colour | None
    share: float | None


def legend_panel(height: int, width: int, entries: list[LegendEntry], theme: Theme) -> tuple[np.ndarray, bool]:
    """Draw the legend of a picture of `height` x `width`: uint8 RGB, and whether it belongs below the picture.

    It belongs on the right, as high as the picture, or below a wide strip, as wide as the picture. At most MAX_ENTRIES
    entries are shown in the given order, fewer if they do not fit; the last line counts the rest.
    """
    below = width > 2.2 * height
    text = text_height(height, width)
    if below:
        return _below(width, entries, theme, text), True
    fitting = int(height / (1.65 * min(len(entries), MAX_ENTRIES) + 1.3))
    text = max(SMALLEST_TEXT, min(text, fitting))
    return _beside(height, width, entries, theme, text), False


def text_height(height: int, width: int) -> int:
    """The height of text in a picture, in pixels."""
    return max(SMALLEST_TEXT, round(TEXT_SHARE * (height * width) ** 0.5))


def _beside(height: int, width: int, entries: list[LegendEntry], theme: Theme, text: int) -> np.ndarray:
    line, margin = round(1.65 * text), round(0.9 * text)
    shown = _shorten(entries, max(1, min(MAX_ENTRIES, (height - 2 * round(0.65 * text)) // line)))
    widest = max(round(0.36 * width), 11 * text)
    column = min(widest, max(_entry_width(entry, text) for entry in shown))
    panel = _blank(height, column + 2 * margin, theme)
    top = max(0, min(round(0.65 * text), (height - line * len(shown)) // 2))
    for row, entry in enumerate(shown):
        _write(panel, margin, top + row * line, column, line, entry, theme, text)
    return np.asarray(panel)


def _below(width: int, entries: list[LegendEntry], theme: Theme, text: int) -> np.ndarray:
    line, margin, gap = round(1.65 * text), round(0.9 * text), round(2.2 * text)
    shown = _shorten(entries, MAX_ENTRIES)
    inner = max(1, width - 2 * margin)
    column = min(inner, 22 * text, max(_entry_width(entry, text) for entry in shown))
    columns = max(1, min(len(shown), (inner + gap) // (column + gap)))
    rows = -(-len(shown) // columns)
    panel = _blank(rows * line + 2 * round(0.65 * text), width, theme)
    for place, entry in enumerate(shown):
        left = margin + (place // rows) * (column + gap)
        _write(panel, left, round(0.65 * text) + (place % rows) * line, column, line, entry, theme, text)
    return np.asarray(panel)


def _shorten(entries: list[LegendEntry], limit: int) -> list[LegendEntry]:
    if len(entries) <= limit:
        return entries
    rest = entries[limit - 1 :]
    share = sum(entry.share or 0.0 for entry in rest)
    return [*entries[: limit - 1], LegendEntry(f"{len(rest)} more", None, share)]


def _blank(height: int, width: int, theme: Theme) -> Any:
    from PIL import Image

    return Image.new("RGB", (width, height), theme.background)


def _write(
    panel: Any, left: int, top: int, width: int, height: int, entry: LegendEntry, theme: Theme, text: int
) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(panel)
    middle = top + height / 2
    swatch = _swatch_width(text)
    box = (left, round(middle - swatch / 2), left + swatch - 1, round(middle - swatch / 2) + swatch - 1)
    outline = theme.outline if entry.colour is None else None
    draw.rounded_rectangle(box, swatch // 5, entry.colour, outline, max(1, text // 14))
    share = percentage(entry.share)
    figures = font_for(share, text)
    figures_width = figures.getlength(share)
    draw.text((left + width - figures_width, middle), share, theme.faint, figures, anchor="lm")
    name_left = left + swatch + round(0.6 * text)
    room = left + width - figures_width - (text if share else 0) - name_left
    name, font = _fitting(entry.name, room, text)
    draw.text((name_left, middle), name, theme.text if entry.colour else theme.faint, font, anchor="lm")


def _entry_width(entry: LegendEntry, text: int) -> int:
    name, share = printable(entry.name), percentage(entry.share)
    share_width = font_for(share, text).getlength(share) + text if share else 0
    return _swatch_width(text) + round(0.6 * text) + round(font_for(name, text).getlength(name) + share_width) + 2


def _swatch_width(text: int) -> int:
    return round(0.95 * text)


def _fitting(name: str, room: float, text: int) -> tuple[str, Any]:
    """The name, or as much of its beginning as fits with an ellipsis, and its font."""
    name = printable(name)
    font = font_for(name, text)
    if font.getlength(name) <= room:
        return name, font
    font = font_for(name + "…", text)
    fits, too_long = 0, len(name)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if font.getlength(name[:middle].rstrip() + "…") <= room:
            fits = middle
        else:
            too_long = middle
    return name[:fits].rstrip() + "…", font


def printable(name: str) -> str:
    """The name on one line, without what cannot be printed, and no longer than LONGEST_NAME."""
    kept = "".join(character if character.isprintable() else " " for character in name)
    return " ".join(kept.split())[:LONGEST_NAME]


def percentage(share: float | None) -> str:
    """The share in percent, with a decimal where it is small; "" for None."""
    if share is None:
        return ""
    percent = 100 * share
    if percent >= 9.95:
        return f"{percent:.0f}%"
    return f"{percent:.1f}%" if percent >= 0.095 else "<0.1%"
