"""COCO panoptic and instances (Lin et al., ECCV 2014; Kirillov et al., CVPR 2019): names come from their own files."""

from collections.abc import Sequence
from pathlib import Path

from vocabseg.benchmarks.datasets.coco_files import (
    Category,
    ImageEntry,
    InstancesFile,
    InstanceTruth,
    PanopticFile,
    PanopticTruth,
    SegmentLabels,
    inside,
    read_annotations,
)
from vocabseg.benchmarks.datasets.dataset import IGNORE, IGNORE_WIDE, Dataset, Sample
from vocabseg.benchmarks.datasets.label_maps import Layout, check_files, find_root, first_existing

IMAGES = ("coco/val2017/*.jpg", "images, from val2017.zip; coco/images/val2017 will do")
LAYOUT_PANOPTIC = (
    IMAGES,
    ("coco/annotations/panoptic_val2017.json", "from panoptic_annotations_trainval2017.zip"),
    ("coco/annotations/panoptic_val2017/*.png", "the archive inside that archive; coco/panoptic_val2017 will do"),
)
LAYOUT_INSTANCES = (IMAGES, ("coco/annotations/instances_val2017.json", "from annotations_trainval2017.zip"))


def coco_panoptic(data_dir: str | Path, split: str = "val") -> Dataset:
    """COCO's 133 classes, 80 of them things; names, order (by id) and things are those of panoptic_val2017.json."""
    name, root, layout = "coco-panoptic", find_root(data_dir, "coco"), LAYOUT_PANOPTIC
    path = first_existing(name, layout, root / "annotations" / f"panoptic_{split}2017.json")
    folder = first_existing(name, layout, path.with_suffix(""), root / path.stem)
    file = read_annotations(path, PanopticFile)
    categories = sorted(file.categories, key=lambda category: category.id)
    truth = PanopticTruth(file, folder, _indices(categories))
    ignored = IGNORE if len(categories) <= IGNORE else IGNORE_WIDE
    return Dataset(
        name, [category.name for category in categories], _samples(name, root, split, file.images, layout),
        SegmentLabels(truth, ignored), truth, ignore_index=ignored,
        things=[index for index, category in enumerate(categories) if category.isthing],
    )  # fmt: skip


def coco_instances(data_dir: str | Path, split: str = "val") -> Dataset:
    """COCO's 80 object classes; names and order (by id) are those of instances_val2017.json."""
    name, root, layout = "coco-instances", find_root(data_dir, "coco"), LAYOUT_INSTANCES
    file = read_annotations(
        first_existing(name, layout, root / "annotations" / f"instances_{split}2017.json"), InstancesFile
    )
    categories = sorted(file.categories, key=lambda category: category.id)
    return Dataset(
        name, [category.name for category in categories], _samples(name, root, split, file.images, layout),
        instances=InstanceTruth(file, _indices(categories)), things=range(len(categories)),
    )  # fmt: skip


def _indices(categories: Sequence[Category]) -> dict[int, int]:
    return {category.id: index for index, category in enumerate(categories)}


def _samples(name: str, root: Path, split: str, images: Sequence[ImageEntry], layout: Layout) -> list[Sample]:
    folder = first_existing(name, layout, root / f"{split}2017", root / "images" / f"{split}2017")
    samples = [Sample(str(image.id), inside(folder, image.file_name)) for image in images]
    check_files(name, *(sample.image for sample in samples))
    return samples
