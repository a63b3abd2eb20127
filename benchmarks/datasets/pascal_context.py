"""Pascal Context (Mottaghi et al., CVPR 2014): the 59 most frequent classes; the rest is ignored."""

from pathlib import Path

from vocabseg.benchmarks.datasets.dataset import Dataset
from vocabseg.benchmarks.datasets.label_maps import find_root, label_map_dataset, listed, pair_up, read_names

LAYOUT = (
    ("pcontext/val/image/*.jpg", "images as zsseg.baseline's prepare_pcontext_sem_seg.py copies them"),
    ("pcontext/val/label/*.png", "label maps of the same script, from trainval_merged.json by the package detail"),
)


def pascal_context_59(data_dir: str | Path, split: str = "val") -> Dataset:
    """The 59 classes; prepared label maps hold the class index and 255 for everything else."""
    name = "pascal-context-59"
    root = find_root(data_dir, "pcontext", "pcontext-59") / split
    pairs = pair_up(name, root / "image", listed(name, root / "label", "*.png", LAYOUT))
    return label_map_dataset(name, read_names("pascal_context_59.txt"), pairs)
