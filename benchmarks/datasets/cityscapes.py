"""Cityscapes (Cordts et al., CVPR 2016): the 19 classes of its benchmark."""

from pathlib import Path

from vocabseg.benchmarks.datasets.dataset import Dataset, Sample
from vocabseg.benchmarks.datasets.label_maps import check_files, find_root, label_map_dataset, listed

LAYOUT = (
    ("cityscapes/leftImg8bit/val/*/*_leftImg8bit.png", "images, from leftImg8bit_trainvaltest.zip"),
    ("cityscapes/gtFine/val/*/*_gtFine_labelIds.png", "label maps, from gtFine_trainvaltest.zip"),
)
# Value in *_labelIds.png and name, in the order of the training ids (cityscapesscripts, helpers/labels.py).
CLASSES = (
    (7, "road"), (8, "sidewalk"), (11, "building"), (12, "wall"), (13, "fence"), (17, "pole"), (19, "traffic light"),
    (20, "traffic sign"), (21, "vegetation"), (22, "terrain"), (23, "sky"), (24, "person"), (25, "rider"), (26, "car"),
    (27, "truck"), (28, "bus"), (31, "train"), (32, "motorcycle"), (33, "bicycle"),
)  # fmt: skip
FIRST_THING = 11
IMAGE, LABELS = "_leftImg8bit", "_gtFine_labelIds"


def cityscapes_19(data_dir: str | Path, split: str = "val") -> Dataset:
    """The 19 classes of the benchmark, read from the published *_labelIds.png; no further preparation is needed."""
    name = "cityscapes-19"
    root = find_root(data_dir, "cityscapes")
    pairs = []
    for path in listed(name, root / "gtFine" / split, f"*/*{LABELS}.png", LAYOUT):
        identity = path.stem.removesuffix(LABELS)
        pairs.append(
            (Sample(identity, root / "leftImg8bit" / split / path.parent.name / f"{identity}{IMAGE}.png"), path)
        )
    check_files(name, *(sample.image for sample, _ in pairs))
    values = {value: index for index, (value, _) in enumerate(CLASSES)}
    names = [label for _, label in CLASSES]
    return label_map_dataset(name, names, pairs, values, things=range(FIRST_THING, len(CLASSES)))
