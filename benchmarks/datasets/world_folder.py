"""A folder in the procedural world's layout: images, label maps, and where there are any, segments and objects."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from vocabseg.benchmarks.datasets.coco_files import (
    Category,
    ImageEntry,
    InstanceTruth,
    PanopticTruth,
    read_instances_file,
    read_panoptic_file,
)
from vocabseg.benchmarks.datasets.dataset import IGNORE, DatasetError, Listed, ObjectTruth, PanopticSegment, Sample
from vocabseg.benchmarks.datasets.label_maps import LabelMapDataset, listed, missing, value_table

LAYOUT = (
    ("classes.json", '{"names": [...], "seen": [...], "things": [class indices]}'),
    ("images/<split>/*.png or *.jpg", "images"),
    ("annotations/<split>/*.png", "label maps: class index, 255 is ignored"),
    ("panoptic_<split>.json, panoptic_<split>/*.png", "optional, as COCO has them"),
    ("instances_<split>.json", "optional, as COCO has it"),
)
SUFFIXES = (".png", ".jpg")


class Classes(msgspec.Struct, frozen=True):
    """classes.json."""

    names: list[str]
    seen: list[bool] | None = None
    things: list[int] | None = None


class WorldFolder(Listed):
    """Label maps with the panoptic and object annotations beside them; the "base" is the set of seen classes."""

    name = "world"
    ignore_index = IGNORE

    def __init__(
        self,
        maps: LabelMapDataset,
        things: frozenset[int],
        panoptic: PanopticTruth | None,
        instances: InstanceTruth | None,
        ids: dict[str, str],
    ):
        self.classes = maps.classes
        self.seen = maps.seen
        self.things = things
        self.evaluation_sets = maps.evaluation_sets
        self._samples = maps.samples()
        self._maps = maps
        self._panoptic = panoptic
        self._instances = instances
        self._ids = ids

    def labels(self, sample: Sample) -> np.ndarray:
        """The label map (H, W) uint8."""
        return self._maps.labels(sample)

    def panoptic(self, sample: Sample) -> tuple[np.ndarray, list[PanopticSegment]] | None:
        identity = self._ids.get(sample.image_id, "")
        return self._panoptic(identity) if self._panoptic is not None and identity in self._panoptic else None

    def instances(self, sample: Sample) -> list[ObjectTruth] | None:
        return None if self._instances is None else self._instances(self._ids.get(sample.image_id, ""))


def world(data_dir: str | Path, split: str | None = None) -> WorldFolder:
    """Read a folder that the procedural world was written to; without `split`, "val" or else the only one there is."""
    root = Path(data_dir)
    path = root / "classes.json"
    if not path.is_file():
        raise missing("world", path, LAYOUT)
    try:
        classes = msgspec.json.decode(path.read_bytes(), type=Classes)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not as expected ({error}): write the data set again") from None
    if classes.seen is not None and len(classes.seen) != len(classes.names):
        raise DatasetError(f"{path} has {len(classes.names)} names and {len(classes.seen)} seen flags: write it again")
    split = split or _only_split(root)
    paths = listed("world", root / "annotations" / split, "*.png", LAYOUT)
    seen = [index for index, flag in enumerate(classes.seen or []) if flag]
    maps = LabelMapDataset(
        "world",
        classes.names,
        [(_sample(root / "images" / split, path), path) for path in paths],
        value_table({index: index for index in range(len(classes.names))}),
        seen=classes.seen,
        evaluation_sets={"base": seen} if classes.seen else None,
    )
    panoptic, instances, things = None, None, set(classes.things or [])
    ids: dict[str, str] = {}
    annotations = root / f"panoptic_{split}.json"
    if annotations.is_file():
        file = read_panoptic_file(annotations)
        panoptic = PanopticTruth(
            file, annotations.with_suffix(""), _indices(file.categories, classes.names, annotations)
        )
        ids |= _annotation_ids(file.images)
        if classes.things is None:
            things = {classes.names.index(category.name) for category in file.categories if category.isthing}
    annotations = root / f"instances_{split}.json"
    if annotations.is_file():
        objects = read_instances_file(annotations)
        instances = InstanceTruth(objects, _indices(objects.categories, classes.names, annotations))
        ids |= _annotation_ids(objects.images)
    return WorldFolder(maps, frozenset(things), panoptic, instances, ids)


def _annotation_ids(images: Sequence[ImageEntry]) -> dict[str, str]:
    """The annotation files' id of each image, by the name of its file without the suffix."""
    return {Path(image.file_name).stem: str(image.id) for image in images}


def _only_split(root: Path) -> str:
    splits = sorted(path.name for path in (root / "annotations").glob("*") if path.is_dir())
    if "val" in splits:
        return "val"
    if len(splits) != 1:
        raise DatasetError(f"world: {root} has the splits {', '.join(splits) or 'none'}: say which with --split")
    return splits[0]


def _sample(folder: Path, label_path: Path) -> Sample:
    for suffix in SUFFIXES:
        image = folder / f"{label_path.stem}{suffix}"
        if image.is_file():
            return Sample(label_path.stem, image)
    raise DatasetError(f"world: {folder / label_path.stem}.png (or .jpg) is missing: the data set is incomplete")


def _indices(categories: list[Category], names: list[str], path: Path) -> dict[int, int]:
    """Category id -> class index, by the name."""
    unknown = [category.name for category in categories if category.name not in names]
    if unknown:
        raise DatasetError(
            f"{path} has the category {unknown[0]!r}, which classes.json has not: write the data set again"
        )
    return {category.id: names.index(category.name) for category in categories}
