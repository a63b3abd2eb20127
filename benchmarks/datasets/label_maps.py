"""Data sets that are folders of images and label maps: reading, and finding out what is missing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.benchmarks.datasets.dataset import IGNORE, IGNORE_WIDE, Dataset, DatasetError, Sample

# The files of a layout and what they are: shown where one is missing.
Layout = Sequence[tuple[str, str]]
LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")


class LabelMaps:
    """Label maps by image id; a table turns the files' values into class indices."""

    def __init__(self, name: str, paths: Mapping[str, Path], table: np.ndarray, read: Callable[[Path], np.ndarray]):
        self._name, self._paths, self._table, self._read = name, paths, table, read

    def __call__(self, image_id: str) -> np.ndarray:
        path = self._paths[image_id]
        values = self._read(path)
        if values.size and int(values.max()) >= len(self._table):
            raise DatasetError(f"{path} holds the value {values.max()}, which no class of {self._name} has")
        return self._table[values]


def read_label_map(path: Path) -> np.ndarray:
    """The pixel values (H, W) of an 8-bit, palette or 16-bit picture; raises DatasetError for any other file."""
    values = read_pixels(path)
    if values.ndim != 2:
        raise DatasetError(f"{path} has {values.shape[2]} channels: a label map has one")
    if values.min(initial=0) < 0:
        raise DatasetError(f"{path} holds the value {values.min()}: a label map holds none below 0")
    return values


def label_map_dataset(
    name: str,
    classes: Sequence[str],
    pairs: Iterable[tuple[Sample, Path]],
    values: Mapping[int, int] | None = None,
    *,
    wide: bool = False,
    read: Callable[[Path], np.ndarray] = read_label_map,
    **more: Any,
) -> Dataset:
    """A data set of images and their label maps.

    `values` are class indices by the files' values (the same by default); all other values are ignored. Label maps come
    as uint8, or where the files are `wide`, as uint16. `more` is passed on to Dataset.
    """
    pairs = list(pairs)
    ignored = IGNORE_WIDE if wide else IGNORE
    table = np.full(ignored + 1, ignored, np.uint16 if wide else np.uint8)
    for value, index in (values or {index: index for index in range(len(classes))}).items():
        table[value] = index
    labels = LabelMaps(name, {sample.image_id: path for sample, path in pairs}, table, read)
    return Dataset(name, classes, [sample for sample, _ in pairs], labels, ignore_index=ignored, **more)


def read_pixels(path: Path) -> np.ndarray:
    """A picture's raw values, (H, W) or (H, W, C), palette entries as they are; raises DatasetError.

    Only formats without loss are read: no other can hold labels, and some of Pillow's readers start other programs.
    """
    from PIL import Image

    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"{path} is no file: copy the data set again")
        with Image.open(path, formats=LOSSLESS) as image:
            pixels = np.asarray(image)
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist: the data set is incomplete") from None
    except Exception as error:  # every decoder raises its own kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{path} cannot be read ({reason}): copy it again") from None
    if pixels.dtype.kind not in "uib":
        raise DatasetError(f"{path} holds values of type {pixels.dtype}, but labels are whole numbers: copy it again")
    return pixels.astype(np.uint8) if pixels.dtype.kind == "b" else pixels


def read_names(file: str) -> list[str]:
    """The class names in a file of `class_names/`, one per line; lines that start with # are comments."""
    text = (files("vocabseg.benchmarks.datasets") / "class_names" / file).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def read_numbered_names(file: str) -> list[tuple[int, str]]:
    """The same for lines that are a number, a space and a name."""
    pairs = (line.split(" ", 1) for line in read_names(file))
    return [(int(number), name) for number, name in pairs]


def find_root(data_dir: str | Path, *folders: str) -> Path:
    """`data_dir / folder` for the first of the folders that is there, or else `data_dir` itself."""
    data_dir = Path(data_dir)
    return next((data_dir / folder for folder in folders if (data_dir / folder).is_dir()), data_dir)


def first_existing(name: str, layout: Layout, *paths: Path) -> Path:
    """The first of the paths that exists; raises DatasetError for none."""
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise missing(name, paths[0], layout)
    return found


def missing(name: str, path: Path, layout: Layout) -> DatasetError:
    """The error for a data set whose `path` is not there, with everything that is expected and where."""
    wanted = "; ".join(f"{place} ({what})" for place, what in layout)
    return DatasetError(f"{name}: {path} is missing; below --data-dir there must be: {wanted}")


def listed(name: str, folder: Path, pattern: str, layout: Layout) -> list[Path]:
    """The files of `folder` that match, in the order of their names; raises DatasetError when there is none."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise missing(name, folder / pattern, layout)
    return found


def pair_up(name: str, image_folder: Path, label_paths: Iterable[Path]) -> list[tuple[Sample, Path]]:
    """Each label map with the JPEG of its name; raises DatasetError where one of the two is not there."""
    pairs = [(Sample(path.stem, image_folder / f"{path.stem}.jpg"), path) for path in label_paths]
    for sample, path in pairs:
        check_files(name, sample.image, path)
    return pairs


def check_files(name: str, *paths: Path) -> None:
    """Raises DatasetError for the first file that is not there."""
    for path in paths:
        if not path.is_file():
            raise DatasetError(f"{name}: {path} is missing: the data set is incomplete")
