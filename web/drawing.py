"""What the page shows of an answer: a picture, and what is in it; and the files that it offers."""

import base64
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.files import strict_json
from vocabseg.runtime.result.panoptic import Instance, rle_encode
from vocabseg.runtime.result.picture import draw_disagreement, draw_overlay
from vocabseg.runtime.result.result import Result

VIEWS = ("semantic", "panoptic", "instances")
QUALITY = 92


@dataclass(frozen=True)
class Drawn:
    """Labels (H, W) int32, indices into `segments`, -1 for none; and what each of these is, as plain types."""

    labels: np.ndarray
    segments: list[dict[str, Any]]
    colours: np.ndarray

    def picture(self, image: np.ndarray, opacity: float) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        names = [segment["name"] for segment in self.segments]
        return draw_overlay(self.labels, names, image, False, opacity, colours=self.colours)


def view(result: Result, kind: str, min_score: float) -> Drawn:
    """What is shown of a result: classes ("semantic"), "panoptic" segments or "instances" of at least a score.

    Raises ConfigurationError for another kind.
    """
    if kind not in VIEWS:
        raise ConfigurationError(f"there is no view {kind[:20]!r}: use one of {', '.join(VIEWS)}")
    return {"semantic": _semantic, "panoptic": _panoptic, "instances": _instances}[kind](result, min_score)


def _semantic(result: Result, min_score: float) -> Drawn:
    labels = result.confident(min_score).labels
    counts = np.bincount(labels.ravel() + 1, minlength=len(result.classes) + 1)[1:]
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda index: -counts[index])
    scores = np.bincount(labels.ravel() + 1, np.minimum(result.scores, 1).ravel(), len(result.classes) + 1)[1:]
    found = [(index, float(scores[index] / counts[index]), int(counts[index]), None) for index in order]
    places = np.full(len(result.classes) + 1, -1, np.int32)
    places[order] = np.arange(len(order))
    return _drawn(result, places[labels], found)


def _panoptic(result: Result, min_score: float) -> Drawn:
    segmentation, segments = _panoptic_of(result)
    kept = sorted((one for one in segments if one["score"] >= min_score), key=lambda one: -one["area"])
    places = np.full(len(segments) + 1, -1, np.int32)
    places[[one["id"] for one in kept]] = np.arange(len(kept))
    return _drawn(result, places[segmentation], [(one["category_id"], one["score"], one["area"], None) for one in kept])


def _instances(result: Result, min_score: float) -> Drawn:
    kept = [one for one in _instances_of(result) if one.score >= min_score]
    labels = np.full(result.labels.shape, -1, np.int32)
    for place in reversed(range(len(kept))):  # the best lie on top
        x1, y1, x2, y2 = kept[place].box
        labels[y1:y2, x1:x2][kept[place].inside] = place
    return _drawn(
        result, labels, [(one.class_index, one.score, int(np.count_nonzero(one.inside)), one.box) for one in kept]
    )


def _drawn(result: Result, labels: np.ndarray, found: list[tuple[int, float, int, Any]]) -> Drawn:
    colours = result.categories.palette(len(result.classes))[[index for index, *_ in found]]
    segments = [
        {
            "name": result.classes[index],
            "score": score,
            "share": area / labels.size,
            "colour": f"#{bytes(colour).hex()}",
            "box": box,
        }
        for (index, score, area, box), colour in zip(found, colours, strict=True)
    ]
    return Drawn(labels, segments, colours)


# Moving a slider asks for the same ones again. Objects of many masks take much memory, so few are kept.
@lru_cache(maxsize=2)
def _panoptic_of(result: Result) -> tuple[np.ndarray, list[dict[str, Any]]]:
    return result.panoptic()


@lru_cache(maxsize=2)
def _instances_of(result: Result) -> list[Instance]:
    return result.instances()


def forget() -> None:
    """Drop the objects that are kept, and the results with them."""
    _panoptic_of.cache_clear()
    _instances_of.cache_clear()


def hovered(result: Result) -> bytes:
    """(H, W) int16 labels, then (H, W) uint8 scores, of which 255 is 1 and more; little-endian."""
    scores = np.rint(255 * np.minimum(result.scores, 1)).astype(np.uint8)
    return result.labels.astype("<i2").tobytes() + scores.tobytes()


def mask_shade(result: Result, mask: int) -> bytes:
    """A PNG, black where the mask at `mask`, a place among all masks of the image, is not; to lie over the picture."""
    known = result.known_evidence()
    opinions = known.opinions
    place = np.flatnonzero(opinions.numbers == mask) if opinions is not None else np.array([], int)
    if not len(place):
        raise ConfigurationError(f"there is no mask {mask}: choose one that votes")
    (weights,) = known.kernels.resample_masks(known.masks[place])
    shade = np.zeros((*weights.shape, 4), np.uint8)
    shade[..., 3] = np.rint(190 * (1 - weights))
    return encoded(shade, "PNG", compress_level=1)


def disagreement(one: Result, other: Result) -> tuple[np.ndarray, float]:
    """The picture of where two results' labels differ, and the share of these pixels, 0..1.

    Raises ConfigurationError for results of different pictures or classes.
    """
    if one.image is None or one.classes != other.classes or one.labels.shape != other.labels.shape:
        raise ConfigurationError("these answers are to different questions: ask again")
    differing = one.labels != other.labels
    return draw_disagreement(one.image, differing), float(differing.mean())


def _overlay(result: Result, kind: str, min_score: float, opacity: float, name: str) -> bytes:
    if kind == "semantic":
        picture = result.confident(min_score).draw(opacity=opacity)
    else:
        assert result.image is not None
        picture = view(result, kind, min_score).picture(result.image, opacity)
    return encoded(picture, "PNG", compress_level=4)


def _palette(result: Result, kind: str, min_score: float, opacity: float, name: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="vocabseg-") as folder:
        path = Path(folder) / "labels.png"
        result.confident(min_score).save_labels(path)
        return path.read_bytes()


def _json(result: Result, kind: str, min_score: float, opacity: float, name: str) -> bytes:
    return strict_json(result.confident(min_score).to_json(), indent=1) + b"\n"


def _coco(result: Result, kind: str, min_score: float, opacity: float, name: str) -> bytes:
    """The instances as COCO has them, with their scores."""
    height, width = result.labels.shape
    annotations: list[dict[str, Any]] = []
    for instance in _instances_of(result):
        if instance.score < min_score:
            continue
        x1, y1, x2, y2 = instance.box
        annotations.append({
            "id": len(annotations) + 1,
            "image_id": 1,
            "category_id": result.categories.id_of(instance.class_index),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(np.count_nonzero(instance.inside)),
            "iscrowd": 0,
            "score": instance.score,
            "segmentation": rle_encode(instance.mask),
        })  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": result.categories.described(result.classes),
    }
    return strict_json(content, indent=1) + b"\n"


# By what a file's name ends in: its media type, and what writes it for a view, a least score, an opacity and a name.
FILES: dict[str, tuple[str, Callable[[Result, str, float, float, str], bytes]]] = {
    "overlay.png": ("image/png", _overlay),
    "labels.png": ("image/png", _palette),
    "result.json": ("application/json", _json),
    "coco.json": ("application/json", _coco),
}


def encoded(picture: np.ndarray, form: str, **options: Any) -> bytes:
    """An image file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form, **options)
    return buffer.getvalue()


def data_url(picture: np.ndarray) -> str:
    """A JPEG as the address of an image."""
    return "data:image/jpeg;base64," + base64.b64encode(encoded(picture, "JPEG", quality=QUALITY)).decode()
