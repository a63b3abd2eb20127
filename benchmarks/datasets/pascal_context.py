"""Pascal Context (Mottaghi et al., CVPR 2014): the 59 most frequent classes; the rest is ignored."""

from pathlib import Path

from vocabseg.benchmarks.datasets.label_maps import (
    LabelMapDataset,
    find_root,
    listed,
    pair_up,
    read_names,
    value_table,
)

LAYOUT = (
    ("pcontext/val/image/*.jpg", "images as zsseg.baseline's prepare_pcontext_sem_seg.py copies them"),
    ("pcontext/val/label/*.png", "label maps of the same script, from trainval_merged.json by the package detail"),
)


def pascal_context_59(data_dir: str | Path, split: str = "val") -> LabelMapDataset:
    """The 59 classes; prepared label maps hold the class index and 255 for everything else."""
    name = "pascal-context-59"
    root = find_root(data_dir, "pcontext", "pcontext-59") / split
    paths = listed(name, root / "label", "*.png", LAYOUT)
    classes = read_names("pascal_context_59.txt")
    table = value_table({index: index for index in range(len(classes))})
    return LabelMapDataset(name, classes, pair_up(name, LAYOUT, root / "image", paths), table)
