"""The picture of a result: the photo tinted by class, crisp borders between the classes, names, and a legend."""

import math

import numpy as np

from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.result.colours import class_colours
from vocabseg.runtime.result.lettering.legend import THEMES, LegendEntry, legend_panel
from vocabseg.runtime.result.lettering.names import write_names
from vocabseg.runtime.result.style import Style

# Pictures smaller than this are enlarged by an integer factor, so that a legend of readable size fits beside them.
SMALLEST_WITH_LEGEND = 320
DISAGREEMENT = (204, 0, 0)
BAND = 256  # rows painted at a time, so that huge pictures need little extra memory


def draw_overlay(
    labels: np.ndarray,
    classes: list[str],
    image: np.ndarray | None = None,
    legend: bool = True,
    opacity: float = 0.6,
    theme: str = "light",
    colours: np.ndarray | None = None,
    style: str = Style.overlay,
    named: bool = False,
) -> np.ndarray:
    """Paint a label map over its photo.

    Args:
        labels: (H, W) integers, indices into `classes`; -1 is painted as "no mask", without a tint.
        classes: names, of any length and script.
        image: (H, W, 3) uint8 RGB; None draws a flat map of colours.
        legend: whether to add a legend, sorted by area, to the right of the picture, or below a wide strip. Pictures
            under 320 pixels are then enlarged by an integer factor. Without it the result is (H, W, 3).
        opacity: of the tint, 0 (borders alone) to 1 (no photo).
        theme: "light" or "dark", the legend's background.
        colours: (C, 3) uint8 RGB; None for those of `class_colours`.
        style: "overlay"; "flat", the colours without the photo; or "outline", the photo and the borders of the classes.
        named: whether regions with room for it have their class's name written on them.

    Returns uint8 RGB. Raises OutputError for an unknown theme or style or an opacity outside 0..1.
    """
    if style not in list(Style):
        raise OutputError(f"unknown style {style!r}; choose one of {', '.join(Style)}")
    if theme not in THEMES:
        raise OutputError(f"unknown theme {theme!r}; choose one of {', '.join(THEMES)}")
    if not 0 <= opacity <= 1:
        raise OutputError(f"opacity {opacity!r} is outside 0..1; choose, for example, 0.6")
    if legend:
        labels, image = _enlarged(labels, image)
    height, width = labels.shape
    areas = by_area(labels, len(classes))
    colours = class_colours(len(classes)) if colours is None else colours
    if not legend:
        canvas = np.empty((height, width, 3), np.uint8)
    else:
        panel, below = legend_panel(height, width, _entries(areas, classes, colours), THEMES[theme])
        if below:
            canvas = np.empty((height + panel.shape[0], width, 3), np.uint8)
            canvas[height:] = panel
        else:
            canvas = np.empty((height, width + panel.shape[1], 3), np.uint8)
            canvas[:, width:] = panel
    drawn = canvas[:height, :width]
    _paint(drawn, labels, colours, None if style == Style.flat else image, opacity, style)
    if named:
        write_names(drawn, labels, classes)
    return canvas


def draw_disagreement(image: np.ndarray, differing: np.ndarray) -> np.ndarray:
    """The photo (H, W, 3) uint8 RGB, pale, with the pixels `differing` (H, W) bool in red."""
    canvas = image // 3 + 150
    canvas[differing] = DISAGREEMENT
    return canvas


def _paint(
    canvas: np.ndarray, labels: np.ndarray, colours: np.ndarray, image: np.ndarray | None, opacity: float, style: str
) -> None:
    """Fill `canvas` (H, W, 3) band by band."""
    import cv2

    height, width = labels.shape
    thickness = max(1, round(math.sqrt(height * width) / 400))
    outlined = style == Style.outline and image is not None
    if outlined:
        thickness *= 2
    table = np.vstack([colours, np.full((1, 3), 128, np.uint8)])  # label -1 takes the last row
    tints = np.rint(table * opacity).astype(np.uint8)
    for top in range(0, height, BAND):
        bottom = min(height, top + BAND)
        # borders are as thick across the bands as within them
        first, last = max(0, top - thickness), min(height, bottom + thickness)
        inside = 1 - _edges(labels[first:last])
        edges = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[top - first : bottom - first] < thickness - 0.5
        band = labels[top:bottom]
        if image is None:
            painted = table[band]
            painted[edges] //= 2
        else:
            photo = np.ascontiguousarray(image[top:bottom])
            if outlined:
                painted = photo.copy()
            else:
                # Only the photo's brightness stays: a tint over grey has the hue of its class, over another colour it
                # would have a third one. Shadows are lifted, so that a light class does not look like a dark one.
                grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
                grey = cv2.convertScaleAbs(grey, alpha=0.9 * (1 - opacity), beta=24 * (1 - opacity))
                painted = cv2.add(tints[band], cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))
            painted[edges] = table[band[edges]]
            bare = band < 0
            painted[bare] = photo[bare]
        canvas[top:bottom] = painted


def _edges(labels: np.ndarray) -> np.ndarray:
    """(h, w) uint8: 1 where the left, right, upper or lower neighbour differs."""
    edges = np.zeros(labels.shape, np.uint8)
    across = labels[:, 1:] != labels[:, :-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    down = labels[1:] != labels[:-1]
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def by_area(labels: np.ndarray, classes: int) -> list[tuple[int, float]]:
    """(class, share of the picture) of the classes present, largest first; -1 comes last, if present."""
    counts = np.zeros(classes + 1, np.int64)
    for top in range(0, len(labels), BAND):
        counts += np.bincount(labels[top : top + BAND].ravel() + 1, minlength=len(counts))
    order = sorted(np.flatnonzero(counts[1:]).tolist(), key=lambda index: (-counts[index + 1], index))
    return [(index, float(counts[index + 1] / labels.size)) for index in [*order, -1] if counts[index + 1]]


def _entries(areas: list[tuple[int, float]], classes: list[str], colours: np.ndarray) -> list[LegendEntry]:
    entries = []
    for index, share in areas:
        if index < 0:
            entries.append(LegendEntry("no mask", None, share))
        else:
            red, green, blue = colours[index].tolist()
            entries.append(LegendEntry(classes[index], (red, green, blue), share))
    return entries


def _enlarged(labels: np.ndarray, image: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    import cv2

    height, width = labels.shape
    factor = -(-SMALLEST_WITH_LEGEND // max(height, width))
    if factor == 1:
        return labels, image
    labels = labels.repeat(factor, 0).repeat(factor, 1)
    if image is not None:
        image = cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
    return labels, image
