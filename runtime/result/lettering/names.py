"""Class names on the regions: where each one fits best, how large, and written so that it can be read there."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vocabseg.runtime.result.lettering.fonts import font_for
from vocabseg.runtime.result.lettering.legend import printable, text_height

# Places are searched on a map of at most this many pixels a side, and for no more regions than this, largest first.
SIDE, MOST = 480, 120
# Text heights that a name may have, over the legend's; below the smallest, a name is left to the legend.
SIZES = (1.4, 1.0, 0.75, 0.55)
SMALLEST = 10  # pixels
# A name keeps this far from its region's border: of its height, on both sides together.
MARGIN = 0.45
LIGHT, DARK = (255, 255, 255), (20, 21, 24)


class Place(NamedTuple):
    """A name's centre in pixels of the picture, and the height of its letters."""

    name: str
    x: int
    y: int
    size: int


def write_names(picture: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Write on each region of `labels` (H, W), if there is room in it, its class's name into `picture` (H, W, 3)."""
    from PIL import Image, ImageDraw

    height, width = labels.shape
    for name, x, y, size in places(labels, classes):
        font, halo = font_for(name, size), max(1, round(size / 9))
        half = round(font.getlength(name) / 2) + 2 * halo + 1
        rows = slice(max(0, y - size), min(height, y + size))
        columns = slice(max(0, x - half), min(width, x + half))
        patch = picture[rows, columns]
        ink, around = (DARK, LIGHT) if patch.mean() > 150 else (LIGHT, DARK)
        written = Image.fromarray(np.ascontiguousarray(patch))
        at = (x - columns.start, y - rows.start)
        ImageDraw.Draw(written).text(at, name, ink, font, anchor="mm", stroke_width=halo, stroke_fill=around)
        picture[rows, columns] = np.asarray(written)


def places(labels: np.ndarray, classes: Sequence[str]) -> Iterator[Place]:
    """The names that fit into connected regions of `labels` (H, W), -1 being none, largest region first.

    A name stands where the largest rectangle of its proportions fits into its region, and of several such places at
    the one nearest the region's centre.
    """
    import cv2

    base = text_height(*labels.shape)
    sizes = sorted({max(SMALLEST, round(base * size)) for size in SIZES}, reverse=True)
    step = -(-max(labels.shape) // SIDE)
    small = np.ascontiguousarray(labels[::step, ::step])
    inside = np.zeros(small.shape, np.uint8)  # pixels whose neighbours have the same class: neighbours are one region
    inside[1:-1, 1:-1] = 1
    inside[1:] &= small[1:] == small[:-1]
    inside[:-1] &= small[1:] == small[:-1]
    inside[:, 1:] &= small[:, 1:] == small[:, :-1]
    inside[:, :-1] &= small[:, 1:] == small[:, :-1]
    _, regions, measures, centres = cv2.connectedComponentsWithStats(inside, connectivity=4)
    areas = measures[1:, cv2.CC_STAT_AREA]
    smallest = (sizes[-1] / step) ** 2  # no name has fewer pixels
    for region in (1 + np.argsort(-areas, kind="stable")[:MOST]).tolist():
        left, top, width, height, area = measures[region].tolist()
        if area < smallest:
            return
        mask = (regions[top : top + height, left : left + width] == region).astype(np.uint8)
        label = int(small[top : top + height, left : left + width][mask > 0][0])
        name = "" if label < 0 else printable(classes[label])
        if not name:
            continue
        middle = (centres[region][0] - left, centres[region][1] - top)
        for shown in dict.fromkeys((name, name.split(",")[0])):  # "sofa, couch, lounge" may do with its first word
            found = _fitted(mask, middle, shown, sizes, step)
            if found is not None:
                x, y, size = found
                yield Place(shown, round((left + x) * step), round((top + y) * step), size)
                break


def _fitted(
    mask: np.ndarray, middle: tuple[float, float], name: str, sizes: Sequence[int], step: int
) -> tuple[float, float, int] | None:
    """The best centre, in `mask` (h, w) uint8, of a name, and the first of `sizes` for which there is room, if any."""
    import cv2

    proportions = (font_for(name, sizes[0]).getlength(name) / sizes[0] + MARGIN) / (1 + MARGIN)
    # Squeezed by them, the name's rectangle is a square, which Chebyshev's distance measures.
    height, width = mask.shape
    squeezed = max(1, round(width / proportions))
    inside = cv2.resize(mask * 255, (squeezed, height), interpolation=cv2.INTER_AREA) == 255
    room = cv2.distanceTransform(np.pad(inside.astype(np.uint8), 1), cv2.DIST_C, 3)[1:-1, 1:-1]
    most = float(room.max())
    size = next((size for size in sizes if size * (1 + MARGIN) <= (2 * most - 1) * step), None)
    if size is None:
        return None
    rows, columns = np.nonzero(room >= min(most, (size * (1 + MARGIN) / step + 1) / 2))
    x, y = (columns + 0.5) * width / squeezed, rows + 0.5
    best = int(((x - middle[0]) ** 2 + (y - middle[1]) ** 2).argmin())
    return float(x[best]), float(y[best]), size
