"""The data sets that can be evaluated, by name."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from vocabseg.benchmarks.datasets.dataset import Dataset, DatasetError
from vocabseg.runtime.bundle.settings import nearest

# Name -> module, function that opens it, and the module's list of expected files.
_HOMES = {
    "coco-stuff-171": ("coco_stuff", "coco_stuff_171", "LAYOUT"),
    "coco-stuff-156": ("coco_stuff", "coco_stuff_156", "LAYOUT"),
    "voc-15": ("voc", "voc_15", "LAYOUT"),
    "voc-20": ("voc", "voc_20", "LAYOUT"),
    "ade20k-150": ("ade20k", "ade20k_150", "LAYOUT_150"),
    "ade20k-847": ("ade20k", "ade20k_847", "LAYOUT_847"),
    "pascal-context-59": ("pascal_context", "pascal_context_59", "LAYOUT"),
    "cityscapes-19": ("cityscapes", "cityscapes_19", "LAYOUT"),
    "coco-panoptic": ("coco", "coco_panoptic", "LAYOUT_PANOPTIC"),
    "coco-instances": ("coco", "coco_instances", "LAYOUT_INSTANCES"),
    "world": ("world_folder", "world", "LAYOUT"),
}
NAMES = tuple(_HOMES)
# The splits of the published data sets; the world's are its folders.
SPLITS = ("val", "train")


def get_dataset(name: str, data_dir: str | Path, split: str | None = None) -> Dataset:
    """Open a data set below `data_dir`.

    `split` is "val" (what None means) or "train"; for the world, the name of one of its folders. Raises DatasetError
    for an unknown name, with the nearest ones, and for missing files, with what is expected where.
    """
    module, opener, _ = _home(name)
    if not Path(data_dir).is_dir():
        raise DatasetError(f"{name}: there is no folder {data_dir}; below it there must be: {_listing(name)}")
    if name != "world" and split is not None and split not in SPLITS:
        raise DatasetError(f"{name} has no split {split!r}: give one of {', '.join(SPLITS)}")
    read: Callable[..., Dataset] = getattr(module, opener)
    return read(data_dir) if split is None else read(data_dir, split)


def class_names(name: str) -> tuple[str, ...] | None:
    """The classes of a published data set, without its files; None for one that has them in its files, and others."""
    from vocabseg.benchmarks.datasets import cityscapes, coco_stuff, voc
    from vocabseg.benchmarks.datasets.label_maps import read_names, read_numbered_names

    stuff = [name for _, name in read_numbered_names("coco_stuff_171.txt")]
    known = {
        "coco-stuff-171": stuff,
        "coco-stuff-156": [name for name in stuff if name not in coco_stuff.UNSEEN],
        "voc-15": voc.CLASSES,
        "voc-20": voc.CLASSES,
        "ade20k-150": read_names("ade20k_150.txt"),
        "ade20k-847": [name for _, name in read_numbered_names("ade20k_847.txt")],
        "pascal-context-59": read_names("pascal_context_59.txt"),
        "cityscapes-19": [name for _, name in cityscapes.CLASSES],
    }
    return tuple(known[name]) if name in known else None


def describe(name: str) -> str:
    """What a data set is and which files are expected where, several lines; raises DatasetError for an unknown name."""
    module, opener, layout = _home(name)
    summary = (inspect.getdoc(getattr(module, opener)) or "").splitlines()[0]
    files = [f"  {place}\n      {what}" for place, what in getattr(module, layout)]
    return "\n".join([f"{name}: {summary}", *files])


def _listing(name: str) -> str:
    module, _, layout = _home(name)
    return "; ".join(f"{place} ({what})" for place, what in getattr(module, layout))


def _home(name: str) -> tuple[object, str, str]:
    if name not in _HOMES:
        raise DatasetError(f"there is no data set {name!r}: {nearest(name.lower().replace('_', '-'), NAMES)}")
    module, opener, layout = _HOMES[name]
    return import_module(f"vocabseg.benchmarks.datasets.{module}"), opener, layout
