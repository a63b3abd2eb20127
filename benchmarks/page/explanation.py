"""A segmented image as one HTML page on which every click tells why the pixel has its label; nothing is loaded."""

import base64
import io
import json
import re
import zlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.result.evidence import Opinions
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.result.votes import BEST_NAMES

# Longer sides, in pixels, of the picture, and of the grid of pixels whose mask probabilities the page holds.
LONGEST_PICTURE, LONGEST_GRID = 1024, 192
QUALITY = 85
DIGITS = 5


def to_explanation_page(result: Result, image: str, model: str, pixels: Sequence[tuple[int, int]] = ()) -> str:
    """The page's text.

    It answers for a grid of pixels, one in the middle of each cell, with mask probabilities rounded to 1/255; for
    `pixels`, (x, y) each, which are marked, with exact ones. Of the classes it holds those that are among the best
    names of a mask or the label of a pixel. Raises VocabsegError for a result without image or evidence.
    """
    content = {"model": model, **_content(result, pixels)}
    # "<" could end the script element that holds the data
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    folder = Path(__file__).parent
    page = (folder / "explanation.html").read_text(encoding="utf-8")
    script = (folder / "explanation.js").read_text(encoding="utf-8")
    parts = {"TITLE": escape(image), "SCRIPT": script, "DATA": data}
    return re.sub(r"\[\[(TITLE|SCRIPT|DATA)\]\]", lambda place: parts[place[1]], page)


def _content(result: Result, pixels: Sequence[tuple[int, int]]) -> dict[str, Any]:
    known = result.known_evidence()
    height, width = result.labels.shape
    step = max(1, -(-max(height, width) // LONGEST_GRID))
    rows, columns = (np.minimum(np.arange(0, side, step) + step // 2, side - 1) for side in (height, width))
    grid = np.rint(255 * known.kernels.resample_masks_at(known.masks, rows, columns)).astype(np.uint8)
    exact = [known.kernels.resample_masks_at(known.masks, [y], [x])[:, 0, 0] for x, y in pixels]
    shown = np.flatnonzero(np.max([grid.max((1, 2)), *(255 * each for each in exact)], axis=0) > 0)
    opinions = known.opinions
    sides = {
        "together": known.class_probabilities[shown],
        "query": None if opinions is None or opinions.query is None else opinions.query[shown],
        "clip": None if opinions is None or opinions.clip is None else opinions.clip[shown],
    }
    missing = any(side is None for side in sides.values())
    classes = _kept(result, [side for side in sides.values() if side is not None])
    place = np.full(len(result.classes) + 1, -1)  # the last one is that of the label -1
    place[classes] = np.arange(len(classes))
    photo = result.image if result.image is not None else np.full((height, width, 3), 255, np.uint8)
    return {
        "width": width,
        "height": height,
        "step": step,
        "photo": _picture(photo),
        "overlay": _picture(result.draw(legend=False, labels=False)),
        "classes": [result.classes[index] for index in classes],
        "of": len(result.classes),
        "colours": [f"#{bytes(colour).hex()}" for colour in result.categories.palette(len(result.classes))[classes]],
        "seen": None if opinions is None else opinions.seen[classes].tolist(),
        "power": None if opinions is None or missing else _rounded(opinions.query_power[classes]),
        "masks": [_mask(known.no_object, opinions, row) for row in shown.tolist()],
        **{name: None if side is None else _rounded(side[:, classes]) for name, side in sides.items()},
        "labels": _packed(place[result.labels[np.ix_(rows, columns)]].astype("<i2")),
        "grid": _packed(grid[shown]),
        "pins": [
            {"x": x, "y": y, "label": int(place[result.labels[y, x]]), "weights": _rounded(weights[shown])}
            for (x, y), weights in zip(pixels, exact, strict=True)
        ],
    }


def _kept(result: Result, sides: list[np.ndarray]) -> np.ndarray:
    """Indices of the classes that are among the best of a mask, or the label of a pixel; the first where no mask is."""
    found = [np.unique(result.labels[result.labels >= 0]), np.arange(1)]
    for side in sides:
        found.append(np.argsort(-side, axis=1, kind="stable")[:, :BEST_NAMES].ravel())
    return np.unique(np.concatenate(found))


def _mask(no_object: np.ndarray, opinions: Opinions | None, row: int) -> dict[str, Any]:
    if opinions is None:
        return {"mask": row, "noObject": float(no_object[row]), "box": None, "area": None, "shares": None}
    return {
        "mask": int(opinions.numbers[row]),
        "noObject": None if opinions.query is None else float(no_object[row]),
        "box": _rounded(opinions.boxes[row]) if opinions.boxes[row].any() else None,
        "area": int(opinions.areas[row]),
        "shares": opinions.shares(row),
    }


def _rounded(values: np.ndarray) -> Any:
    """Nested lists with DIGITS significant digits; None for NaN."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [None if np.isnan(value) else float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _packed(values: np.ndarray) -> str:
    """The bytes of an array, deflated, in base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()


def _picture(pixels: np.ndarray) -> str:
    from PIL import Image

    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((LONGEST_PICTURE, LONGEST_PICTURE))
    picture.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
