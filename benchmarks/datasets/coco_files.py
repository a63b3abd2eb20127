"""COCO's panoptic and instance annotation files, and the truths that they hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from vocabseg.benchmarks.datasets.dataset import IGNORE, DatasetError, ObjectTruth, Panoptic, PanopticSegment
from vocabseg.benchmarks.datasets.label_maps import read_pixels
from vocabseg.runtime.files import decode_json, read_regular

# Bytes that an annotation file may have; COCO's largest, of its training images, has 469,000,000.
LARGEST_FILE = 2 << 30
Side = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Identity = Annotated[int, msgspec.Meta(ge=-(2**62), lt=2**62)]
Colour = Annotated[int, msgspec.Meta(ge=0, lt=2**24)]
# Pixels along the outline of one polygon, and from the image's corner to its points: COCO's code takes memory and time
# for each.
LONGEST_OUTLINE = 1_000_000


class Category(msgspec.Struct, frozen=True):
    """A class as a COCO file lists it; instance files leave `isthing` out, all of theirs are things."""

    id: Identity
    name: str
    isthing: Identity = 1


class ImageEntry(msgspec.Struct, frozen=True):
    """An image as a COCO file lists it."""

    id: Identity | str
    file_name: str
    height: Side
    width: Side


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


class RunLengths(msgspec.Struct, frozen=True):
    """A mask as run lengths down its columns, or as COCO's text of these; `size` is (H, W)."""

    size: tuple[Side, Side]
    counts: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]] | str


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


def compressed(segmentation: Sequence[Sequence[float]] | RunLengths, size: tuple[int, int]) -> dict[str, object]:
    """Any of COCO's three forms of a mask of this size (H, W) as compressed run lengths with text counts.

    Raises ValueError, worded to follow "an object", for masks that pycocotools would hang or take gigabytes on.
    """
    from pycocotools import mask as coco_mask

    height, width = size
    if isinstance(segmentation, RunLengths):
        counts = segmentation.counts
        runs = decode_counts(counts) if isinstance(counts, str) else np.array(counts, np.int64)
        if segmentation.size != size or runs.sum() != height * width or runs.min(initial=0) < 0:
            raise ValueError(f"whose run lengths do not fill its {width} x {height} pixels")
        if isinstance(counts, str):
            return {"size": [height, width], "counts": counts}
        encoded = coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
    else:
        for polygon in segmentation or [[]]:
            _check_polygon(polygon)
        encoded = coco_mask.merge(coco_mask.frPyObjects([list(polygon) for polygon in segmentation], height, width))
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def decode_counts(text: str) -> np.ndarray:
    """The run lengths, (N,) int64, in COCO's text: groups of five bits as characters from 48 on.

    Raises ValueError, worded as for `compressed`, for any other text.
    """
    codes = np.array([ord(char) - 48 for char in text], np.int64)
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("whose run lengths are no such text")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: longer than any image
        raise ValueError("whose run lengths are no such text")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << 5 * places, starts)
    values = np.where(codes[ends] & 16, values - (1 << 5 * lengths), values)
    # From the fourth on, each is the difference to the last but one.
    for parity in (1, 2):
        values[parity::2] = np.cumsum(values[parity::2])
    return values


def _check_polygon(polygon: Sequence[float]) -> None:
    points = np.array(polygon, np.float64)
    if points.size < 6 or points.size % 2:
        raise ValueError(f"with a polygon of {points.size} numbers, where three pairs or more are due")
    points = points.reshape(-1, 2)
    outline = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if not (np.abs(points).max() <= LONGEST_OUTLINE and outline <= LONGEST_OUTLINE):
        raise ValueError(f"with a polygon that is {outline:.3g} pixels long")


def packed(mask: Mapping[str, Any]) -> dict[str, Any]:
    """The same run lengths with counts as bytes, as pycocotools takes them."""
    return {"size": mask["size"], "counts": mask["counts"].encode("ascii")}


def mask_area(mask: Mapping[str, Any]) -> float:
    """Pixels of a mask in compressed run lengths."""
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(packed(mask)))


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
