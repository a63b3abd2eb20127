"""Writes the procedural world in the layout of the published data sets: images, label maps, panoptic and instances."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from vocabseg.benchmarks.scenes.world import CLASSES, OBJECTS, SEEN, SPLITS, WORLD_VERSION, Scene, render_scene
from vocabseg.runtime.errors import OutputError

Progress = Callable[[str, int, int], None]
SCENES = 500  # of the test split, what the demo model's published figures are measured on


def write_world(folder: str | Path, split: str, count: int, seed: int = 0, progress: Progress | None = None) -> Path:
    """Write the first `count` scenes of a split ("train", "val" or "test") into `folder`, and return it.

    images/SPLIT/ID.png, annotations/SPLIT/ID.png (label maps), panoptic_SPLIT/ID.png with panoptic_SPLIT.json (a
    segment's id is R + 256 G + 65536 B), instances_SPLIT.json (COCO), and classes.json. A category's id is its class
    index + 1. Raises OutputError where the folder cannot be written.
    """
    folder = Path(folder)
    places = {kind: folder / kind / split for kind in ("images", "annotations")}
    places["panoptic"] = folder / f"panoptic_{split}"
    try:
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        (folder / "classes.json").write_text(json.dumps(_classes(), indent=1))
        tables = _Tables()
        for index in range(count):
            scene = render_scene(seed, split, index)
            name = f"{split}-{seed}-{index:06d}"
            tables.add(name, scene)
            _write(places["images"] / f"{name}.png", scene.image[..., ::-1])
            _write(places["annotations"] / f"{name}.png", scene.labels)
            blank = np.zeros_like(scene.segmentation)
            _write(places["panoptic"] / f"{name}.png", np.stack([blank, blank, scene.segmentation], axis=2))
            if progress is not None:
                progress(f"drawing {split}", index + 1, count)
        for kind, table in (("panoptic", tables.panoptic), ("instances", tables.instances)):
            (folder / f"{kind}_{split}.json").write_text(json.dumps(table))
    except OSError as error:
        raise OutputError(f"cannot write the world to {folder}: {(error.strerror or str(error)).lower()}") from None
    return folder


def rendered_world(count: int = SCENES, notify: Callable[[str], None] | None = None, seed: int = 0) -> Path:
    """The folder of the first `count` test scenes in the user's cache, rendered when it is not there yet.

    `notify` is told when they are rendered. Raises OutputError where the cache cannot be written.
    """
    from platformdirs import user_cache_path

    from vocabseg.runtime.text.cache import cache_folder

    folder = (cache_folder() or user_cache_path("vocabseg")) / f"world-{WORLD_VERSION}-{seed}-{count}"
    if (folder / "classes.json").is_file():
        return folder
    if notify is not None:
        notify(f"Rendering {count} scenes once to {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            whole = write_world(Path(temporary) / "world", "test", count, seed)
            whole.rename(folder)
    except OSError as error:
        if not (folder / "classes.json").is_file():  # else another process was quicker with the same scenes
            raise OutputError(f"cannot write the world to {folder}: {(error.strerror or str(error)).lower()}") from None
    return folder


def _classes() -> dict[str, Any]:
    return {"names": list(CLASSES), "seen": list(SEEN), "things": list(range(len(OBJECTS)))}


def _write(path: Path, pixels: np.ndarray) -> None:
    # Fast compression: the noise of the pictures hardly compresses.
    if not cv2.imwrite(str(path), np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OutputError(f"cannot write {path}: is the disk full?")


class _Tables:
    """The JSON files of a split, as COCO publishes them."""

    def __init__(self) -> None:
        categories = [
            {"id": index + 1, "name": name, "isthing": int(index < len(OBJECTS)), "supercategory": "world"}
            for index, name in enumerate(CLASSES)
        ]
        self.panoptic: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        self.instances: dict[str, Any] = {"images": [], "annotations": [], "categories": categories[: len(OBJECTS)]}

    def add(self, name: str, scene: Scene) -> None:
        from pycocotools import mask as coding

        h, w = scene.labels.shape
        image = {"id": name, "file_name": f"{name}.png", "height": h, "width": w}
        self.panoptic["images"].append(image)
        self.instances["images"].append(image)
        segments = []
        for segment in scene.segments:
            mask = scene.segmentation == segment.id
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
            record = {"category_id": segment.class_index + 1, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
            segments.append({"id": segment.id, **record})
            if segment.class_index < len(OBJECTS):
                coded = coding.encode(np.asfortranarray(mask.astype(np.uint8)))
                text = {"size": [h, w], "counts": coded["counts"].decode("ascii")}
                identity = len(self.instances["annotations"]) + 1
                self.instances["annotations"].append(
                    {"id": identity, "image_id": name, "segmentation": text, "attribute": segment.surface, **record}
                )
        self.panoptic["annotations"].append({"image_id": name, "file_name": f"{name}.png", "segments_info": segments})


def _advance(bar: Any, task: Any, _: str, done: int, __: int) -> None:
    bar.update(task, completed=done)


def main() -> None:
    typer.run(_command)


def _command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write into.")],
    train: Annotated[int, typer.Option(help="Scenes of the training split.")] = 0,
    val: Annotated[int, typer.Option(help="Scenes of the validation split.")] = 0,
    test: Annotated[int, typer.Option(help="Scenes of the test split.")] = 0,
    seed: Annotated[int, typer.Option(help="Other scenes for another seed.")] = 0,
) -> None:
    """Write scenes of the procedural world. Example: --output world --val 500"""
    from rich.progress import Progress as Bar

    with Bar() as bar:
        for split, count in zip(SPLITS, (train, val, test), strict=True):
            if count:
                task = bar.add_task(f"drawing {split}", total=count)
                write_world(output, split, count, seed, partial(_advance, bar, task))
    print(output)
