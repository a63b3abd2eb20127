"""COCO-Stuff 164k (Caesar et al., CVPR 2018): 171 classes, of which zsseg.baseline trains on 156."""

from pathlib import Path

from vocabseg.benchmarks.datasets.dataset import Dataset
from vocabseg.benchmarks.datasets.label_maps import (
    find_root,
    first_existing,
    label_map_dataset,
    listed,
    pair_up,
    read_numbered_names,
)

LAYOUT = (
    ("coco/val2017/*.jpg", "images, from images.cocodataset.org/zips/val2017.zip; coco/images/val2017 will do"),
    (
        "coco/stuffthingmaps/val2017/*.png",
        "label maps, from stuffthingmaps_trainval2017.zip; those that zsseg.baseline's preparation writes to "
        "coco/stuffthingmaps_detectron2 will do",
    ),
)
# The published split; the first seven are things.
UNSEEN = (
    "cow", "giraffe", "suitcase", "frisbee", "skateboard", "carrot", "scissors",
    "cardboard", "clouds", "grass", "playingfield", "river", "road", "tree", "wall-concrete",
)  # fmt: skip
THINGS = 80


def coco_stuff_171(data_dir: str | Path, split: str = "val") -> Dataset:
    """All 171 classes in the order of their ids, with the published split into 156 seen and 15 unseen ones.

    The evaluation sets are "base" (seen), "novel_thing" and "novel_stuff". Expected are `LAYOUT`'s files; the published
    label maps hold category id - 1, the prepared ones the class index.
    """
    return _read("coco-stuff-171", data_dir, split, seen_only=False)


def coco_stuff_156(data_dir: str | Path, split: str = "val") -> Dataset:
    """The 156 seen classes alone, as zsseg.baseline trains on them: pixels of unseen classes are ignored."""
    return _read("coco-stuff-156", data_dir, split, seen_only=True)


def _read(name: str, data_dir: str | Path, split: str, seen_only: bool) -> Dataset:
    root = find_root(data_dir, "coco")
    folder = f"{split}2017"
    images = first_existing(name, LAYOUT, root / folder, root / "images" / folder)
    categories = read_numbered_names("coco_stuff_171.txt")
    published, prepared = root / "stuffthingmaps" / folder, root / "stuffthingmaps_detectron2" / folder
    if published.is_dir() or not prepared.is_dir():
        labels, values = published, [identity - 1 for identity, _ in categories]
    else:
        labels, values = prepared, list(range(len(categories)))
    paths = listed(name, labels, "*.png", LAYOUT)
    names = [category for _, category in categories]
    kept = [index for index, category in enumerate(names) if not seen_only or category not in UNSEEN]
    seen = [index for index in kept if names[index] not in UNSEEN]
    sets = None
    if not seen_only:
        unseen = [index for index in kept if names[index] in UNSEEN]
        sets = {
            "base": seen,
            "novel_thing": [index for index in unseen if index < THINGS],
            "novel_stuff": [index for index in unseen if index >= THINGS],
        }
    return label_map_dataset(
        name,
        [names[index] for index in kept],
        pair_up(name, images, paths),
        {values[index]: place for place, index in enumerate(kept)},
        seen=[names[index] not in UNSEEN for index in kept],
        things=[place for place, index in enumerate(kept) if index < THINGS],
        evaluation_sets=sets,
    )
