"""Average precision of masks, by COCO's own evaluation (pycocotools)."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from vocabseg.benchmarks.datasets.dataset import ObjectTruth
from vocabseg.runtime.result.run_lengths import mask_area, packed


class Detection(msgspec.Struct, frozen=True):
    """One predicted object: class index, score, and mask as {"size": [H, W], "counts": ASCII text}."""

    class_index: int
    score: float
    mask: dict[str, Any]


class MaskMetrics(msgspec.Struct, frozen=True):
    """COCO's summary in percent; None where nothing was there to be measured.

    Attributes:
        ap: average precision, mean over classes and IoU thresholds 0.50, 0.55, ... 0.95.
        ap50, ap75: at one IoU threshold.
        ap_small, ap_medium, ap_large: objects under 32 x 32 pixels, under 96 x 96, and larger.
        recall: average recall of the 100 best detections per image.
        per_class: average precision by class; None for classes without an object.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    recall: float | None
    per_class: list[float | None]


def mask_average_precision(
    truth: Mapping[str, Sequence[ObjectTruth]], detections: Mapping[str, Iterable[Detection]], classes: int
) -> MaskMetrics:
    """Average precision over the images of `truth`, by image id; detections of other images are left out."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbers = {image_id: number for number, image_id in enumerate(truth, start=1)}
    annotations: list[dict[str, Any]] = []
    for image_id, objects in truth.items():
        for entry in objects:
            annotations.append(_annotation(len(annotations) + 1, numbers[image_id], entry.class_index, entry.mask))
            annotations[-1].update(area=entry.area, iscrowd=int(entry.crowd))
    found: list[dict[str, Any]] = []
    for image_id, number in numbers.items():
        for detection in detections.get(image_id, ()):
            found.append(_annotation(len(found) + 1, number, detection.class_index, detection.mask))
            found[-1].update(area=mask_area(detection.mask), iscrowd=0, score=detection.score)
    if not annotations:
        return MaskMetrics(None, None, None, None, None, None, None, [None] * classes)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its steps with print
        right, guessed = (_coco(COCO(), numbers, entries, classes) for entries in (annotations, found))
        evaluation = COCOeval(right, guessed, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # stats: AP, AP50, AP75, small, medium, large; then recall with 1, 10 and 100 detections per image.
    ap, ap50, ap75, small, medium, large, _, _, recall = (_percent(value) for value in evaluation.stats[:9])
    return MaskMetrics(ap, ap50, ap75, small, medium, large, recall, _per_class(evaluation, classes))


def _annotation(identity: int, image: int, class_index: int, mask: Mapping[str, Any]) -> dict[str, Any]:
    # COCO's category ids start at 1.
    return {"id": identity, "image_id": image, "category_id": class_index + 1, "segmentation": packed(mask)}


def _coco(coco: Any, numbers: Mapping[str, int], annotations: list[dict[str, Any]], classes: int) -> Any:
    coco.dataset = {
        # pycocotools looks the size up, and uses it for polygons only.
        "images": [{"id": number, "height": 0, "width": 0} for number in numbers.values()],
        "categories": [{"id": index + 1} for index in range(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _per_class(evaluation: Any, classes: int) -> list[float | None]:
    # precision: (IoU threshold, recall, class, area range, detections per image), -1 where there is no object.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    values = []
    for index in range(classes):
        known = precision[:, :, index][precision[:, :, index] > -1]
        values.append(100 * float(known.mean()) if known.size else None)
    return values


def _percent(value: float) -> float | None:
    return None if value < 0 or np.isnan(value) else 100 * float(value)
