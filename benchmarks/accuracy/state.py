"""The state of an evaluation on disk, so that an interrupted one continues where it stopped."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from vocabseg.benchmarks.accuracy.mask_ap import Detection
from vocabseg.benchmarks.accuracy.measure import ImageOutcome
from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.benchmarks.accuracy.panoptic_quality import PanopticQuality
from vocabseg.benchmarks.datasets.dataset import Dataset
from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.files import atomic_write, decode_json, make_folder

FOLDER = "partial"
FILE = "state.json"
FORMAT = 1


class Stored(msgspec.Struct, frozen=True):
    """state.json: sums over the images that are done. `parts` files beside it hold their detections."""

    format: int
    identity: dict[str, str]
    scores: dict[str, float | None]
    broken: dict[str, str]
    confusion: dict[str, Any] | None
    panoptic: dict[str, list[Any]] | None
    parts: int
    crops: list[int] = []


class EvaluationState:
    """Sums over the images that are done, written to `folder / "partial"` where there is a folder.

    Attributes:
        scores: the mean IoU of each image that was measured.
        broken: the other images, with the reason.
        confusion, panoptic: sums, or None where nothing of the kind was measured yet.
        detections: predicted objects by image, where they were asked for.
        crops: of each image for which that is known, how many the image encoder was given.
    """

    def __init__(self, identity: Mapping[str, str], classes: int, folder: Path | None = None):
        self.identity = dict(identity)
        self.classes = classes
        self.scores: dict[str, float | None] = {}
        self.broken: dict[str, str] = {}
        self.confusion: ConfusionMatrix | None = None
        self.panoptic: PanopticQuality | None = None
        self.detections: dict[str, list[Detection]] = {}
        self.crops: list[int] = []
        self._folder = None if folder is None else folder / FOLDER
        self._parts = 0
        self._unsaved: dict[str, list[Detection]] = {}

    @property
    def done(self) -> set[str]:
        """The images that are done, those that could not be measured included."""
        return self.scores.keys() | self.broken.keys()

    def add(self, outcome: ImageOutcome) -> None:
        """Add the outcome of one image."""
        if outcome.error is not None:
            self.broken[outcome.image_id] = outcome.error
            return
        self.scores[outcome.image_id] = outcome.score
        if outcome.crops is not None:
            self.crops.append(outcome.crops)
        if outcome.cells is not None and outcome.counts is not None:
            self.confusion = self.confusion or ConfusionMatrix(self.classes)
            self.confusion.add(outcome.cells, outcome.counts)
        if outcome.panoptic is not None:
            self.panoptic = self.panoptic or PanopticQuality(self.classes)
            self.panoptic.merge(outcome.panoptic)
        if outcome.detections is not None:
            self.detections[outcome.image_id] = outcome.detections
            self._unsaved[outcome.image_id] = outcome.detections

    def save(self) -> None:
        """Write what is done; detections go to a file of their own each time, so that none is written twice."""
        if self._folder is None:
            return
        make_folder(self._folder)
        if self._unsaved:
            _write(self._part(self._parts), self._unsaved)
            self._parts += 1
            self._unsaved = {}
        stored = Stored(
            format=FORMAT,
            identity=self.identity,
            scores=self.scores,
            broken=self.broken,
            confusion=None if self.confusion is None else self.confusion.to_json(),
            panoptic=None if self.panoptic is None else self.panoptic.to_json(),
            parts=self._parts,
            crops=self.crops,
        )
        _write(self._folder / FILE, stored)

    def load(self) -> str | None:
        """Take over what an earlier evaluation of the same things left; its broken images are tried again.

        Returns why it did not, in one line; None when it did, or there was nothing.
        """
        if self._folder is None or not (self._folder / FILE).is_file():
            return None
        try:
            stored = decode_json((self._folder / FILE).read_bytes(), Stored)
            if stored.format != FORMAT:
                return f"the earlier results in {self._folder} have another format"
            different = [key for key in self.identity if stored.identity.get(key) != self.identity[key]]
            if different or len(stored.identity) != len(self.identity):
                return f"the earlier results in {self._folder} are of another {' and '.join(different) or 'kind'}"
            detections: dict[str, list[Detection]] = {}
            for number in range(stored.parts):
                data = self._part(number).read_bytes()
                detections.update(decode_json(data, dict[str, list[Detection]]))
        except (OSError, ValueError) as error:
            return f"the earlier results in {self._folder} cannot be read ({' '.join(str(error).split())})"
        self.scores, self._parts, self.crops = dict(stored.scores), stored.parts, list(stored.crops)
        self.confusion = None if stored.confusion is None else ConfusionMatrix.from_json(stored.confusion)
        self.panoptic = None if stored.panoptic is None else PanopticQuality.from_json(stored.panoptic)
        self.detections = detections
        return None

    def discard(self) -> None:
        """Remove what an earlier evaluation left in the folder; raises OutputError where that is not allowed."""
        if self._folder is not None and self._folder.is_dir():
            try:
                shutil.rmtree(self._folder)
            except OSError as error:
                raise OutputError(
                    f"cannot remove {self._folder} ({error}): remove it, or take another folder"
                ) from None

    def _part(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"detections-{number:05d}.json"


def dataset_identity(dataset: Dataset) -> dict[str, str]:
    """What distinguishes data sets: the name, the classes with their split, and the images with their sizes."""
    classes = repr((dataset.classes, dataset.seen, sorted(dataset.evaluation_sets.items()))).encode()
    images = hashlib.sha256()
    for sample in dataset.samples():
        size = sample.image.stat().st_size if sample.image.is_file() else -1
        images.update(f"{sample.image_id} {size}\n".encode())
    return {"dataset": dataset.name, "classes": hashlib.sha256(classes).hexdigest(), "images": images.hexdigest()}


def _write(path: Path, data: Any) -> None:
    with atomic_write(path) as file:
        file.write(msgspec.json.encode(data))
