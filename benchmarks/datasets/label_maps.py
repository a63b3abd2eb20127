"""Data sets that are folders of images and label maps: reading, and finding out what is missing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from vocabseg.benchmarks.datasets.dataset import IGNORE, DatasetError, Listed, ObjectTruth, PanopticSegment, Sample

# The files of a layout and what they are: shown where one is missing.
Layout = Sequence[tuple[str, str]]


class LabelMapDataset(Listed):
    """Images and label maps in pairs; a table turns the files' values into class indices.

    `ignore_index` follows from the table: 255 for a table of uint8, 65535 for one of uint16.
    """

    things: frozenset[int]

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        pairs: Iterable[tuple[Sample, Path]],
        table: np.ndarray,
        seen: Sequence[bool] | None = None,
        things: Iterable[int] = (),
        evaluation_sets: Mapping[str, Sequence[int]] | None = None,
        read: Callable[[Path], np.ndarray] | None = None,
    ):
        self.name = name
        self.classes = tuple(classes)
        self.seen = None if seen is None else tuple(bool(flag) for flag in seen)
        self.ignore_index = int(np.iinfo(table.dtype).max)
        self.things = frozenset(things)
        self.evaluation_sets = {key: tuple(members) for key, members in (evaluation_sets or {}).items()}
        self._table = table
        self._read = read or read_label_map
        self._paths: dict[str, Path] = {}
        self._samples: list[Sample] = []
        for sample, path in pairs:
            self._samples.append(sample)
            self._paths[sample.image_id] = path

    def labels(self, sample: Sample) -> np.ndarray:
        """The label map (H, W), uint8 or uint16; raises DatasetError when its file cannot be used."""
        path = self._paths[sample.image_id]
        values = self._read(path)
        if values.size and int(values.max()) >= len(self._table):
            raise DatasetError(f"{path} holds the value {values.max()}, which no class of {self.name} has")
        return self._table[values]

    def panoptic(self, sample: Sample) -> tuple[np.ndarray, list[PanopticSegment]] | None:
        return None

    def instances(self, sample: Sample) -> list[ObjectTruth] | None:
        return None


def value_table(values: Mapping[int, int], size: int = 256) -> np.ndarray:
    """A table of `size` entries from a file's values to class indices; every other value is ignored."""
    table = np.full(size, np.iinfo(np.uint16).max, np.uint16) if size > 256 else np.full(size, IGNORE, np.uint8)
    for value, index in values.items():
        table[value] = index
    return table


def read_label_map(path: Path) -> np.ndarray:
    """The pixel values (H, W) of an 8-bit, palette or 16-bit picture; raises DatasetError for any other file."""
    values = read_pixels(path)
    if values.ndim != 2:
        raise DatasetError(f"{path} has {values.shape[2]} channels: a label map has one")
    if values.min(initial=0) < 0:
        raise DatasetError(f"{path} holds the value {values.min()}: label maps hold none below 0")
    return values


def read_pixels(path: Path) -> np.ndarray:
    """A picture's raw values, (H, W) or (H, W, C), palette entries as they are; raises DatasetError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist: the data set is incomplete") from None
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} cannot be read ({' '.join(str(error).split())}): copy it again") from None


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


def first_existing(*paths: Path) -> Path | None:
    """The first of the paths that exists."""
    return next((path for path in paths if path.exists()), None)


def missing(name: str, path: Path, layout: Layout) -> DatasetError:
    """The error for a data set whose `path` is not there, with everything that is expected and where."""
    wanted = "; ".join(f"{place} ({what})" for place, what in layout)
    return DatasetError(f"{name}: {path} is missing; below --data-dir there must be: {wanted}")


def pair_up(
    name: str,
    layout: Layout,
    image_folder: Path,
    label_paths: Sequence[Path],
    image_suffix: str = ".jpg",
    image_name: Callable[[str], str] = str,
) -> list[tuple[Sample, Path]]:
    """Each label map with the image `image_name(stem of the label map) + image_suffix`; raises DatasetError."""
    if not label_paths:
        raise missing(name, image_folder, layout)
    pairs = []
    for path in label_paths:
        identity = image_name(path.stem)
        image = image_folder / f"{identity}{image_suffix}"
        if not image.is_file():
            raise DatasetError(f"{name}: {image} is missing, the image of {path.name}: the data set is incomplete")
        pairs.append((Sample(identity, image), path))
    return pairs


def listed(name: str, folder: Path, pattern: str, layout: Layout) -> list[Path]:
    """The files of `folder` that match, in the order of their names; raises DatasetError when there is none."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise missing(name, folder / pattern, layout)
    return found
