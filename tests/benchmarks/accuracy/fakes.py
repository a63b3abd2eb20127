"""A tiny world on disk and a segmenter that knows its truth and gets a chosen share of it wrong."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vocabseg.benchmarks.datasets.registry import get_dataset
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.result.panoptic import Instance
from vocabseg.runtime.text.vocabulary import Vocabulary

NAMES = ("red disc", "green square", "grass", "brick wall")
SEEN = (True, False, True, True)
SIZE = (24, 30)


def write_world(root: Path, images: int = 6, annotations: bool = True, seed: int = 0) -> None:
    """Scenes of a background and two rectangles, with label maps and, if wanted, segments and objects."""
    random = np.random.default_rng(seed)
    for folder in ("images/val", "annotations/val", "panoptic_val"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"names": NAMES, "seen": SEEN, "things": [0, 1]}))
    listed, segments, objects = [], [], []
    for number in range(images):
        name = f"{number:03d}"
        labels = np.full(SIZE, 2 + number % 2, np.uint8)
        ids = np.full(SIZE, 1, np.int64)
        boxes = []
        for thing in (0, 1):
            top, left = int(random.integers(1, 12)), 1 + 14 * thing
            labels[top : top + 10, left : left + 12], ids[top : top + 10, left : left + 12] = thing, 2 + thing
            boxes.append([left, top, 12, 10])
        labels[0] = 255
        ids[0] = 0
        Image.fromarray(random.integers(0, 255, (*SIZE, 3)).astype(np.uint8)).save(root / f"images/val/{name}.png")
        Image.fromarray(labels).save(root / f"annotations/val/{name}.png")
        colours = np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8)
        Image.fromarray(colours).save(root / f"panoptic_val/{name}.png")
        listed.append({"id": 100 + number, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]})
        info = [{"id": 1, "category_id": 3 + number % 2}, {"id": 2, "category_id": 1}, {"id": 3, "category_id": 2}]
        segments.append({"image_id": 100 + number, "file_name": f"{name}.png", "segments_info": info})
        for thing, (left, top, width, height) in enumerate(boxes):
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            objects.append(
                {"image_id": 100 + number, "category_id": thing + 1, "segmentation": [corners], "area": width * height}
            )
    if annotations:
        categories = [{"id": i + 1, "name": name, "isthing": int(i < 2)} for i, name in enumerate(NAMES)]
        (root / "panoptic_val.json").write_text(
            json.dumps({"images": listed, "annotations": segments, "categories": categories})
        )
        (root / "instances_val.json").write_text(
            json.dumps({"images": listed, "annotations": objects, "categories": categories[:2]})
        )


@dataclass(frozen=True)
class FakeResult:
    """Labels, and segments and objects made of them."""

    labels: np.ndarray

    def panoptic(self, things: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
        present = np.unique(self.labels).tolist()
        return self.labels + 1, [
            {"id": index + 1, "category_id": index, "isthing": index in things} for index in present
        ]

    def instances(self, things: Any, top_k: int) -> list[Instance]:
        found = []
        for index in sorted(things):
            mask = self.labels == index
            if mask.any():
                box = (0, 0, mask.shape[1], mask.shape[0])
                found.append(Instance(index, 0.9, box, mask, mask.shape))
        return found[:top_k]


@dataclass
class FakeSegmenter:
    """The truth, but `wrong` of the green squares' pixels (from the left) are called red disc; `dead` images fail."""

    root: Path
    wrong: float = 0.0
    dead: tuple[str, ...] = ()
    calls: int = 0

    def __post_init__(self) -> None:
        self.dataset = get_dataset("world", self.root)
        self.samples = {sample.image: sample for sample in self.dataset.samples()}

    @property
    def identity(self) -> dict[str, str]:
        return {"model": f"fake {self.wrong}", "engine": "fake"}

    def __call__(self, image: Path, vocabulary: Vocabulary) -> FakeResult:
        assert vocabulary.names == NAMES
        assert vocabulary.seen is not None
        assert vocabulary.seen.tolist() == list(SEEN)
        self.calls += 1
        sample = self.samples[image]
        if sample.image_id in self.dead:
            raise ImageError(f"{image} is broken on purpose")
        truth = self.dataset.labels(sample)
        assert truth is not None
        labels = truth.astype(np.int32)
        labels[truth == 255] = 3
        rows, columns = np.nonzero(truth == 1)
        confused = columns < columns.min() + round(12 * self.wrong)
        labels[rows[confused], columns[confused]] = 0
        return FakeResult(labels)


@dataclass(frozen=True)
class FakeSource:
    """The same as something that other processes can open."""

    root: Path
    wrong: float = 0.0

    @property
    def identity(self) -> dict[str, str]:
        return {"model": f"fake {self.wrong}", "engine": "fake"}

    def open(self) -> FakeSegmenter:
        return FakeSegmenter(self.root, self.wrong)
