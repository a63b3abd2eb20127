"""COCO's panoptic and instance annotation files, and the truths that they hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from vocabseg.benchmarks.datasets.dataset import IGNORE, DatasetError, ObjectTruth, Panoptic, PanopticSegment
from vocabseg.benchmarks.datasets.label_maps import read_pixels
from vocabseg.runtime.files import decode_json, read_regular
from vocabseg.runtime.result.run_lengths import MaskSide, RunLengths, compressed, mask_area

# Bytes that an annotation file may have; COCO's largest, of its training images, has 469,000,000.
LARGEST_FILE = 2 << 30
Identity = Annotated[int, msgspec.Meta(ge=-(2**62), lt=2**62)]
Colour = Annotated[int, msgspec.Meta(ge=0, lt=2**24)]


class Category(msgspec.Struct, frozen=True):
    """A class as a COCO file lists it; instance files leave `isthing` out, all of theirs are things."""

    id: Identity
    name: str
    isthing: Identity = 1


class ImageEntry(msgspec.Struct, frozen=True):
    """An image as a COCO file lists it."""

    id: Identity | str
    file_name: str
    height: MaskSide
    width: MaskSide


class SegmentEntry(msgspec.Struct, frozen=True):
    """A segment of a panoptic annotation; `id` is its colour, red + 256 green + 65536 blue."""

    id: Colour
    category_id: Identity
    iscrowd: Identity = 0


class PanopticEntry(msgspec.Struct, frozen=True):
    """The panoptic annotation of one image."""

    image_id: Identity | str
    file_name: str
    segments_info: list[SegmentEntry]


class ObjectEntry(msgspec.Struct, frozen=True):
    """One object of an instance annotation: polygons, run lengths or compressed run lengths."""

    image_id: Identity | str
    category_id: Identity
    segmentation: list[list[float]] | RunLengths
    area: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    iscrowd: Identity = 0


class PanopticFile(msgspec.Struct, frozen=True):
    """panoptic_<split>.json."""

    images: list[ImageEntry]
    annotations: list[PanopticEntry]
    categories: list[Category]


class InstancesFile(msgspec.Struct, frozen=True):
    """instances_<split>.json."""

    images: list[ImageEntry]
    annotations: list[ObjectEntry]
    categories: list[Category]


FileT = TypeVar("FileT", PanopticFile, InstancesFile)


def read_annotations(path: Path, kind: type[FileT]) -> FileT:
    """Decode an annotation file; raises DatasetError where it is none of that kind."""
    try:
        return decode_json(read_regular(path, LARGEST_FILE), kind)
    except ValueError as error:
        what = "panoptic" if kind is PanopticFile else "instance"
        raise DatasetError(f"{path} is no {what} annotation file ({error}): copy it again") from None


class PanopticTruth:
    """Panoptic annotations by image id, with class indices instead of category ids."""

    def __init__(self, file: PanopticFile, folder: Path, indices: Mapping[int, int]):
        self._folder = folder
        self._entries = {str(entry.image_id): entry for entry in file.annotations}
        self._indices = dict(indices)

    def __call__(self, image_id: str) -> Panoptic | None:
        entry = self._entries.get(image_id)
        if entry is None:
            return None
        path = inside(self._folder, entry.file_name)
        pixels = read_pixels(path)
        if pixels.ndim != 3 or pixels.shape[2] < 3:
            raise DatasetError(f"{path} is grey: a panoptic segmentation is coloured")
        red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
        segments = []
        for segment in entry.segments_info:
            if segment.category_id not in self._indices:
                raise DatasetError(f"{path} has a segment of category {segment.category_id}, which is not listed")
            segments.append(PanopticSegment(segment.id, self._indices[segment.category_id], bool(segment.iscrowd)))
        return red + 256 * green + 65536 * blue, segments


class InstanceTruth:
    """Objects by image id, with class indices instead of category ids and masks as compressed run lengths."""

    def __init__(self, file: InstancesFile, indices: Mapping[int, int]):
        self._sizes = {str(image.id): (image.height, image.width) for image in file.images}
        self._entries: dict[str, list[ObjectEntry]] = {}
        for entry in file.annotations:
            self._entries.setdefault(str(entry.image_id), []).append(entry)
        self._indices = dict(indices)

    def __call__(self, image_id: str) -> list[ObjectTruth]:
        objects = []
        for entry in self._entries.get(image_id, []):
            if entry.category_id not in self._indices:
                raise DatasetError(
                    f"image {image_id} has an object of category {entry.category_id}, which is not listed"
                )
            try:
                mask = compressed(entry.segmentation, self._sizes[image_id])
            except ValueError as error:
                raise DatasetError(f"image {image_id} has an object {error}: copy the annotations again") from None
            area = entry.area or mask_area(mask)
            objects.append(ObjectTruth(self._indices[entry.category_id], mask, area, bool(entry.iscrowd)))
        return objects


def inside(folder: Path, name: str) -> Path:
    """The path of a file that an annotation names; raises DatasetError for one outside the folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not name.isprintable() or not path.name:
        raise DatasetError(f"an annotation names the file {name[:80]!r}, which is not in {folder}: do not use it")
    return folder / path


class SegmentLabels:
    """Label maps made of panoptic segments; pixels of no segment are ignored."""

    def __init__(self, truth: PanopticTruth, ignore_index: int):
        self._truth, self._ignore_index = truth, ignore_index

    def __call__(self, image_id: str) -> np.ndarray | None:
        found = self._truth(image_id)
        if found is None:
            return None
        segmentation, segments = found
        known, places = np.unique(segmentation, return_inverse=True)
        by_id = {segment.id: segment.class_index for segment in segments}
        values = np.array([by_id.get(int(identity), self._ignore_index) for identity in known])
        dtype = np.uint8 if self._ignore_index == IGNORE else np.uint16
        return values.astype(dtype)[places].reshape(segmentation.shape)
