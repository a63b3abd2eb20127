"""A folder in the procedural world's layout: images, label maps, and where there are any, segments and objects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from vocabseg.benchmarks.datasets.coco_files import (
    LARGEST_FILE,
    Category,
    ImageEntry,
    InstancesFile,
    InstanceTruth,
    PanopticFile,
    PanopticTruth,
    read_annotations,
)
from vocabseg.benchmarks.datasets.dataset import IGNORE, Dataset, DatasetError, Sample
from vocabseg.benchmarks.datasets.label_maps import first_existing, label_map_dataset, listed
from vocabseg.runtime.files import decode_json, read_regular

LAYOUT = (
    ("classes.json", '{"names": [...], "seen": [...], "things": [class indices]}'),
    ("images/<split>/*.png or *.jpg", "images"),
    ("annotations/<split>/*.png", "label maps: class index, 255 is ignored"),
    ("panoptic_<split>.json, panoptic_<split>/*.png", "optional, as COCO has them"),
    ("instances_<split>.json", "optional, as COCO has it"),
)


class Classes(msgspec.Struct, frozen=True):
    """classes.json."""

    names: list[str]
    seen: list[bool] | None = None
    things: list[Annotated[int, msgspec.Meta(ge=0, lt=IGNORE)]] | None = None


@dataclass(frozen=True)
class ByStem:
    """A truth by the name of an image's file without its suffix, whatever id the annotation file has for it."""

    truth: Callable[[str], Any]
    ids: Mapping[str, str]

    def __call__(self, image_id: str) -> Any:
        return self.truth(self.ids.get(image_id, ""))


def world(data_dir: str | Path, split: str | None = None) -> Dataset:
    """Read a folder that the procedural world was written to; without `split`, "val" or else the only one there is.

    The evaluation set "base" is that of the seen classes.
    """
    root = Path(data_dir)
    classes = _classes(first_existing("world", LAYOUT, root / "classes.json"))
    split = split or _only_split(root)
    truths: dict[str, Any] = {}
    things = classes.things
    path = root / f"panoptic_{split}.json"
    if path.is_file():
        file = read_annotations(path, PanopticFile)
        indices = _indices(file.categories, classes.names, path)
        truths["panoptic"] = ByStem(PanopticTruth(file, path.with_suffix(""), indices), _ids(file.images))
        if things is None:
            things = [indices[category.id] for category in file.categories if category.isthing]
    path = root / f"instances_{split}.json"
    if path.is_file():
        objects = read_annotations(path, InstancesFile)
        truth = InstanceTruth(objects, _indices(objects.categories, classes.names, path))
        truths["instances"] = ByStem(truth, _ids(objects.images))
    paths = listed("world", root / "annotations" / split, "*.png", LAYOUT)
    seen = [index for index, flag in enumerate(classes.seen or []) if flag]
    return label_map_dataset(
        "world",
        classes.names,
        [(_sample(root / "images" / split, path), path) for path in paths],
        seen=classes.seen,
        things=things or (),
        evaluation_sets={"base": seen} if classes.seen else None,
        **truths,
    )


def _classes(path: Path) -> Classes:
    try:
        classes = decode_json(read_regular(path, LARGEST_FILE), Classes)
    except ValueError as error:
        raise DatasetError(f"{path} is not as expected ({error}): write the data set again") from None
    if classes.seen is not None and len(classes.seen) != len(classes.names):
        raise DatasetError(f"{path} has {len(classes.names)} names and {len(classes.seen)} seen flags: write it again")
    if not 0 < len(classes.names) < IGNORE or max(classes.things or [0]) >= len(classes.names):
        raise DatasetError(f"{path} has {len(classes.names)} names, or things beyond them: give 1 to {IGNORE - 1}")
    return classes


def _ids(images: Sequence[ImageEntry]) -> dict[str, str]:
    return {Path(image.file_name).stem: str(image.id) for image in images}


def _only_split(root: Path) -> str:
    splits = sorted(path.name for path in (root / "annotations").glob("*") if path.is_dir())
    if "val" in splits:
        return "val"
    if len(splits) != 1:
        raise DatasetError(f"world: {root} has the splits {', '.join(splits) or 'none'}: say which with --split")
    return splits[0]


def _sample(folder: Path, label_path: Path) -> Sample:
    for suffix in (".png", ".jpg"):
        image = folder / f"{label_path.stem}{suffix}"
        if image.is_file():
            return Sample(label_path.stem, image)
    raise DatasetError(f"world: {folder / label_path.stem}.png (or .jpg) is missing: the data set is incomplete")


def _indices(categories: Sequence[Category], names: list[str], path: Path) -> dict[int, int]:
    """Category id -> class index, by the name."""
    unknown = [category.name for category in categories if category.name not in names]
    if unknown:
        raise DatasetError(
            f"{path} has the category {unknown[0]!r}, which classes.json does not have: write the data set again"
        )
    return {category.id: names.index(category.name) for category in categories}
