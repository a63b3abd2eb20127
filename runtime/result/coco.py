"""COCO's panoptic format: a PNG whose pixels are segment ids, and JSON that describes them (Kirillov et al., 2019)."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.result.categories import Categories
from vocabseg.runtime.result.panoptic import coco_box


def coco_panoptic(
    file_name: str,
    target: str,
    segmentation: np.ndarray,
    segments: Sequence[dict[str, Any]],
    classes: Sequence[str],
    things: Collection[int],
    categories: Categories | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The PNG (H, W, 3) uint8 with id = R + 256 G + 65536 B, and the JSON for it at `target`.

    Args:
        file_name: the image's; its stem becomes the image's id.
        target: where the JSON goes; the PNG is named like it.
        segmentation: (H, W) int32 ids, 0 for no segment.
        segments: as `panoptic_segments` describes them.
        classes: the categories, by index.
        things: the indices of those that are countable.
        categories: their ids and colours; the contrast class is none of COCO's.
    """
    known = categories or Categories()
    image = {"id": Path(file_name).stem, "file_name": file_name}
    height, width = segmentation.shape
    described = [
        {
            "id": segment["id"],
            "category_id": known.id_of(segment["category_id"]),
            "iscrowd": 0,
            "area": segment["area"],
            "bbox": coco_box(segmentation == segment["id"]),
            "score": segment["score"],
        }
        for segment in segments
    ]
    described_classes = [
        {**entry, "isthing": int(index in things)}
        for index, entry in enumerate(known.described(classes))
        if index != known.other
    ]
    annotation = {
        "image_id": image["id"],
        "file_name": Path(target).with_suffix(".png").name,
        "segments_info": described,
    }
    content = {
        "images": [{**image, "height": height, "width": width}],
        "annotations": [annotation],
        "categories": described_classes,
    }
    ids = segmentation.astype(np.uint32)
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8), content
