"""COCO panoptic and instances (Lin et al., ECCV 2014; Kirillov et al., CVPR 2019): names come from their own files."""

from collections.abc import Sequence
from pathlib import Path

from vocabseg.benchmarks.datasets.coco_files import (
    Category,
    CocoDataset,
    ImageEntry,
    InstanceTruth,
    PanopticTruth,
    read_instances_file,
    read_panoptic_file,
)
from vocabseg.benchmarks.datasets.dataset import DatasetError, Sample
from vocabseg.benchmarks.datasets.label_maps import find_root, first_existing, missing

IMAGES = ("coco/val2017/*.jpg", "images, from val2017.zip; coco/images/val2017 will do")
LAYOUT_PANOPTIC = (
    IMAGES,
    ("coco/annotations/panoptic_val2017.json", "from panoptic_annotations_trainval2017.zip"),
    (
        "coco/annotations/panoptic_val2017/*.png",
        "the archive inside that archive; coco/panoptic_val2017 will do",
    ),
)
LAYOUT_INSTANCES = (IMAGES, ("coco/annotations/instances_val2017.json", "from annotations_trainval2017.zip"))


def coco_panoptic(data_dir: str | Path, split: str = "val") -> CocoDataset:
    """COCO's 133 classes, 80 of them things; names, order (by id) and things are those of panoptic_val2017.json."""
    name, root = "coco-panoptic", find_root(data_dir, "coco")
    path = root / "annotations" / f"panoptic_{split}2017.json"
    folders = (path.with_suffix(""), root / path.stem)
    folder = first_existing(*folders)
    if not path.is_file() or folder is None:
        raise missing(name, folders[0] if path.is_file() else path, LAYOUT_PANOPTIC)
    file = read_panoptic_file(path)
    categories = sorted(file.categories, key=lambda category: category.id)
    truth = PanopticTruth(file, folder, _indices(categories))
    samples = _samples(name, root, split, file.images, LAYOUT_PANOPTIC)
    return CocoDataset(name, _names(categories), things_of(categories), samples, panoptic=truth)


def coco_instances(data_dir: str | Path, split: str = "val") -> CocoDataset:
    """COCO's 80 object classes; names and order (by id) are those of instances_val2017.json."""
    name, root = "coco-instances", find_root(data_dir, "coco")
    path = root / "annotations" / f"instances_{split}2017.json"
    if not path.is_file():
        raise missing(name, path, LAYOUT_INSTANCES)
    file = read_instances_file(path)
    categories = sorted(file.categories, key=lambda category: category.id)
    truth = InstanceTruth(file, _indices(categories))
    samples = _samples(name, root, split, file.images, LAYOUT_INSTANCES)
    return CocoDataset(name, _names(categories), things_of(categories), samples, instances=truth)


def things_of(categories: Sequence[Category]) -> frozenset[int]:
    """The places of the things among the categories."""
    return frozenset(index for index, category in enumerate(categories) if category.isthing)


def _names(categories: Sequence[Category]) -> list[str]:
    return [category.name for category in categories]


def _indices(categories: Sequence[Category]) -> dict[int, int]:
    return {category.id: index for index, category in enumerate(categories)}


def _samples(
    name: str, root: Path, split: str, images: Sequence[ImageEntry], layout: Sequence[tuple[str, str]]
) -> list[Sample]:
    folder = first_existing(root / f"{split}2017", root / "images" / f"{split}2017")
    if folder is None:
        raise missing(name, root / f"{split}2017", layout)
    samples = [Sample(str(image.id), folder / image.file_name) for image in images]
    for sample in samples:
        if not sample.image.is_file():
            raise DatasetError(f"{name}: {sample.image} is missing: the data set is incomplete")
    return samples
