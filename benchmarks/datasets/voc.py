"""PASCAL VOC 2012 semantic segmentation: 20 classes, the background is ignored."""

from pathlib import Path

from vocabseg.benchmarks.datasets.dataset import DatasetError
from vocabseg.benchmarks.datasets.label_maps import (
    LabelMapDataset,
    find_root,
    first_existing,
    listed,
    missing,
    pair_up,
    value_table,
)

LAYOUT = (
    ("VOC2012/JPEGImages/*.jpg", "images, from VOCtrainval_11-May-2012.tar; VOCdevkit/VOC2012 will do"),
    ("VOC2012/ImageSets/Segmentation/val.txt", "names of the images; or VOC2012/val.txt"),
    (
        "VOC2012/SegmentationClassAug/*.png",
        "label maps; SegmentationClass, or what zsseg.baseline's preparation writes to annotations_detectron2, will do",
    ),
)
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# The first 15 are seen in training, the last 5 are not.
SEEN = 15


def voc_15(data_dir: str | Path, split: str = "val") -> LabelMapDataset:
    """The 20 classes with the published split: the first 15 seen ("base"), the last five unseen.

    zsseg.baseline's configuration for all 20 classes keeps these flags; `voc_20` follows the cross-data-set rule.
    """
    return _read("voc-15", data_dir, split, split_classes=True)


def voc_20(data_dir: str | Path, split: str = "val") -> LabelMapDataset:
    """The 20 classes without a split, all of them unseen."""
    return _read("voc-20", data_dir, split, split_classes=False)


def _read(name: str, data_dir: str | Path, split: str, split_classes: bool) -> LabelMapDataset:
    root = find_root(data_dir, "VOC2012", "VOCdevkit/VOC2012")
    images = root / "JPEGImages"
    if not images.is_dir():
        raise missing(name, images, LAYOUT)
    labels = first_existing(root / "SegmentationClassAug", root / "SegmentationClass")
    if labels is None:
        labels = root / "annotations_detectron2" / split
        values = {index: index for index in range(len(CLASSES))}
        paths = listed(name, labels, "*.png", LAYOUT)
    else:
        values = {index + 1: index for index in range(len(CLASSES))}  # 0 is the background, 255 the objects' edges
        paths = [labels / f"{image}.png" for image in _listed_images(name, root, split)]
        for path in paths:
            if not path.is_file():
                raise DatasetError(f"{name}: {path} is missing: the data set is incomplete")
    return LabelMapDataset(
        name,
        CLASSES,
        pair_up(name, LAYOUT, images, paths),
        value_table(values),
        seen=[index < SEEN for index in range(len(CLASSES))] if split_classes else None,
        things=range(len(CLASSES)),
        evaluation_sets={"base": range(SEEN)} if split_classes else None,
    )


def _listed_images(name: str, root: Path, split: str) -> list[str]:
    path = first_existing(root / f"{split}.txt", root / "ImageSets" / "Segmentation" / f"{split}.txt")
    if path is None:
        raise missing(name, root / "ImageSets" / "Segmentation" / f"{split}.txt", LAYOUT)
    names = path.read_text(encoding="utf-8").split()
    if not names:
        raise DatasetError(f"{name}: {path} lists no image: copy it again")
    return names
