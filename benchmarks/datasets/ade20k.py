"""ADE20K (Zhou et al., CVPR 2017): the scene-parsing benchmark's 150 classes, and the 847 of the full annotation."""

from pathlib import Path

import numpy as np

from vocabseg.benchmarks.datasets.dataset import Dataset, DatasetError, Sample
from vocabseg.benchmarks.datasets.label_maps import (
    check_files,
    find_root,
    label_map_dataset,
    listed,
    missing,
    pair_up,
    read_names,
    read_numbered_names,
    read_pixels,
)

LAYOUT_150 = (
    ("ADEChallengeData2016/images/validation/*.jpg", "images, from ADEChallengeData2016.zip"),
    (
        "ADEChallengeData2016/annotations/validation/*.png",
        "label maps of the same archive; those that MaskFormer's preparation writes to annotations_detectron2 will do",
    ),
)
LAYOUT_847 = (
    (
        "ADE20K_2021_17_01/images_detectron2/validation/*.jpg",
        "images that MaskFormer's prepare_ade20k_full_sem_seg.py wrote, the shorter side at most 512",
    ),
    (
        "ADE20K_2021_17_01/annotations_detectron2/validation/*.tif",
        "label maps of the same script; else the release's images/ADE/validation/*/*/*.jpg with their *_seg.png",
    ),
)
# Folder names of the splits.
SPLITS = {"val": "validation", "train": "training"}


def ade20k_150(data_dir: str | Path, split: str = "val") -> Dataset:
    """The 150 classes of the scene-parsing benchmark; published label maps hold class index + 1, and 0 for none."""
    name = "ade20k-150"
    root = find_root(data_dir, "ADEChallengeData2016")
    folder = SPLITS[split]
    published, prepared = root / "annotations" / folder, root / "annotations_detectron2" / folder
    first = 0 if prepared.is_dir() and not published.is_dir() else 1
    paths = listed(name, published if first else prepared, "*.png", LAYOUT_150)
    classes = read_names("ade20k_150.txt")
    values = {index + first: index for index in range(len(classes))}
    return label_map_dataset(name, classes, pair_up(name, root / "images" / folder, paths), values)


def ade20k_847(data_dir: str | Path, split: str = "val") -> Dataset:
    """The 847 classes of the full annotation that MaskFormer evaluates, with all their synonyms in the name.

    The published figures are on images whose shorter side was reduced to 512, as the preparation writes them. Where
    only the release itself is there, it is read as it is, and labels are compared at full resolution.
    """
    name = "ade20k-847"
    root = find_root(data_dir, "ADE20K_2021_17_01")
    categories = read_numbered_names("ade20k_847.txt")
    classes = [category for _, category in categories]
    images, labels = (root / part / SPLITS[split] for part in ("images_detectron2", "annotations_detectron2"))
    release = root / "images" / "ADE" / SPLITS[split]
    if labels.is_dir() or not release.is_dir():
        pairs = pair_up(name, images, listed(name, labels, "*.tif", LAYOUT_847))
        return label_map_dataset(name, classes, pairs, wide=True)
    paths = sorted(release.rglob("*.jpg"), key=lambda path: path.name)
    if not paths:
        raise missing(name, release / "*/*/*.jpg", LAYOUT_847)
    pairs = [(Sample(path.stem, path), path.with_name(f"{path.stem}_seg.png")) for path in paths]
    check_files(name, *(path for _, path in pairs))
    values = {number: index for index, (number, _) in enumerate(categories)}
    return label_map_dataset(name, classes, pairs, values, wide=True, read=read_release_labels)


def read_release_labels(path: Path) -> np.ndarray:
    """The class numbers (H, W) in a *_seg.png of the release: red / 10 * 256 + green (its own description)."""
    pixels = read_pixels(path)
    if pixels.ndim != 3:
        raise DatasetError(f"{path} has one channel: the release's label maps are coloured")
    return pixels[..., 0].astype(np.int64) // 10 * 256 + pixels[..., 1]
