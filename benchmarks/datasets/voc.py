"""PASCAL VOC 2012 semantic segmentation: 20 classes, the background is ignored."""

from pathlib import Path

from vocabseg.benchmarks.datasets.dataset import Dataset, DatasetError
from vocabseg.benchmarks.datasets.label_maps import find_root, first_existing, label_map_dataset, listed, pair_up

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


def voc_15(data_dir: str | Path, split: str = "val") -> Dataset:
    """The 20 classes with the published split: the first 15 seen ("base"), the last five unseen.

    zsseg.baseline's configuration for all 20 classes keeps these flags; `voc_20` follows the cross-data-set rule.
    """
    return _read("voc-15", data_dir, split, split_classes=True)


def voc_20(data_dir: str | Path, split: str = "val") -> Dataset:
    """The 20 classes without a split, all of them unseen."""
    return _read("voc-20", data_dir, split, split_classes=False)


def _read(name: str, data_dir: str | Path, split: str, split_classes: bool) -> Dataset:
    root = find_root(data_dir, "VOC2012", "VOCdevkit/VOC2012")
    images = first_existing(name, LAYOUT, root / "JPEGImages")
    labels = next(
        (root / kind for kind in ("SegmentationClassAug", "SegmentationClass") if (root / kind).exists()), None
    )
    if labels is None:
        first = 0
        paths = listed(name, root / "annotations_detectron2" / split, "*.png", LAYOUT)
    else:
        first = 1  # 0 is the background, 255 the objects' edges
        file = first_existing(name, LAYOUT, root / f"{split}.txt", root / "ImageSets" / "Segmentation" / f"{split}.txt")
        paths = [labels / f"{image}.png" for image in file.read_text(encoding="utf-8").split()]
        if not paths:
            raise DatasetError(f"{name}: {file} lists no image: copy it again")
    return label_map_dataset(
        name,
        CLASSES,
        pair_up(name, images, paths),
        {index + first: index for index in range(len(CLASSES))},
        seen=[index < SEEN for index in range(len(CLASSES))] if split_classes else None,
        things=range(len(CLASSES)),
        evaluation_sets={"base": range(SEEN)} if split_classes else None,
    )
