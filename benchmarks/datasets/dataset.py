"""What a data set is to the metrics: images, class names, and the truth about each image, read when asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from vocabseg.runtime.errors import VocabsegError

# The value of label-map pixels that metrics ignore, in every data set, whatever its files use.
IGNORE = 255
# The same in uint16 label maps, which data sets of 255 classes and more have.
IGNORE_WIDE = 65535


class DatasetError(VocabsegError):
    """A data set that is unknown, not where it was looked for, or damaged."""


class Sample(msgspec.Struct, frozen=True):
    """One image of a data set: its name there, unique within the data set, and its file."""

    image_id: str
    image: Path


class PanopticSegment(msgspec.Struct, frozen=True):
    """One segment of a panoptic truth: its value in the segmentation, its class, and whether it is a crowd region."""

    id: int
    class_index: int
    crowd: bool = False


class ObjectTruth(msgspec.Struct, frozen=True):
    """One object of an instance truth, as COCO publishes it.

    Attributes:
        class_index: index into the data set's classes.
        mask: compressed run-length encoding, {"size": [H, W], "counts": ASCII text}.
        area: pixels as the annotation states them; average precision by object size goes by it.
        crowd: a group too dense to separate; detections inside neither count for nor against.
    """

    class_index: int
    mask: dict[str, object]
    area: float
    crowd: bool = False


Panoptic = tuple[np.ndarray, list[PanopticSegment]]


class Dataset:
    """A data set on disk.

    Attributes:
        name: the name it is registered under.
        classes: names in the published order; a label map's values index them.
        seen: whether each class was seen in training; None where there is no split.
        ignore_index: value of label-map pixels that are not evaluated.
        things: indices of the classes with countable objects.
        evaluation_sets: names of class subsets and their indices; each is measured with its complement.

    The readers of the truth take an image id, and can be sent to other processes.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        samples: Sequence[Sample],
        labels: Callable[[str], np.ndarray | None] | None = None,
        panoptic: Callable[[str], Panoptic | None] | None = None,
        instances: Callable[[str], list[ObjectTruth]] | None = None,
        *,
        seen: Sequence[bool] | None = None,
        things: Iterable[int] = (),
        evaluation_sets: Mapping[str, Sequence[int]] | None = None,
        ignore_index: int = IGNORE,
    ):
        self.name, self.classes, self.ignore_index = name, tuple(classes), ignore_index
        self.seen = None if seen is None else tuple(map(bool, seen))
        self.things = frozenset(things)
        self.evaluation_sets = {key: tuple(members) for key, members in (evaluation_sets or {}).items()}
        self._samples = list(samples)
        self._labels, self._panoptic, self._instances = labels, panoptic, instances

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def samples(self) -> list[Sample]:
        """Every image, in the order of the names or of the annotation file."""
        return list(self._samples)

    def labels(self, sample: Sample) -> np.ndarray | None:
        """The label map (H, W), uint8 or uint16: class index or `ignore_index`; None where the data set has none.

        Here and below, DatasetError is raised for a file that cannot be used.
        """
        return None if self._labels is None else self._labels(sample.image_id)

    def panoptic(self, sample: Sample) -> Panoptic | None:
        """The segment ids (H, W) int32, 0 where unlabelled, and the segments; None where the data set has none."""
        return None if self._panoptic is None else self._panoptic(sample.image_id)

    def instances(self, sample: Sample) -> list[ObjectTruth] | None:
        """The image's objects; None where the data set has none."""
        return None if self._instances is None else self._instances(sample.image_id)
