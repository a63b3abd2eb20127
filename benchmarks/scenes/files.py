"""Writes the procedural world to disk: single images, or whole splits in the layout of the published data sets.

python -m vocabseg.benchmarks.scenes.files --output DIR --train N --val N
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from vocabseg.benchmarks.scenes.world import CLASSES, OBJECTS, SEEN, SPLITS, WORLD_VERSION, Scene, render_scene
from vocabseg.runtime.bundle.manifest import sha256_file
from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.files import cache_folder, read_regular, user_cache, whole_folder
from vocabseg.runtime.progress import Progress, silent

# SHA-256 of the files of a rendered world: figures must not come from scenes that were damaged since.
DIGESTS = "SHA256SUMS"
SCENES = 500  # of the test split: what the demo model's published figures are measured on


def write_scenes(
    folder: Path,
    count: int,
    first: int = 0,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    name: str = "scene-{}.png",
) -> list[Path]:
    """Write test scenes `first` to `first + count - 1` as PNG into an existing folder; `name` takes the number."""
    from PIL import Image

    numbers = range(first, first + count)
    paths = [folder / name.format(number) for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        Image.fromarray(render_scene(seed, "test", number, size=size).image).save(path)
    return paths


def write_world(folder: str | Path, split: str, count: int, seed: int = 0, progress: Progress = silent) -> Path:
    """Write the first `count` scenes of a split ("train", "val" or "test") into `folder`, and return it.

    images/SPLIT/ID.png, annotations/SPLIT/ID.png (label maps), panoptic_SPLIT/ID.png with panoptic_SPLIT.json (a
    segment's id is R + 256 G + 65536 B), instances_SPLIT.json (COCO), and classes.json. A category's id is its class
    index + 1. Raises OutputError where the folder cannot be written.
    """
    folder = Path(folder)
    images, annotations, panoptic = (
        folder / place for place in (f"images/{split}", f"annotations/{split}", f"panoptic_{split}")
    )
    try:
        for place in (images, annotations, panoptic):
            place.mkdir(parents=True, exist_ok=True)
        classes = {"names": list(CLASSES), "seen": list(SEEN), "things": list(range(len(OBJECTS)))}
        (folder / "classes.json").write_text(json.dumps(classes, indent=1))
        tables = _Tables()
        for index in range(count):
            scene = render_scene(seed, split, index)
            name = f"{split}-{seed}-{index:06d}"
            tables.add(name, scene)
            _write(images / f"{name}.png", scene.image[..., ::-1])
            _write(annotations / f"{name}.png", scene.labels)
            blank = np.zeros_like(scene.segmentation)
            _write(panoptic / f"{name}.png", np.stack([blank, blank, scene.segmentation], axis=2))
            progress(f"drawing {split}", index + 1, count)
        for kind, table in (("panoptic", tables.panoptic), ("instances", tables.instances)):
            (folder / f"{kind}_{split}.json").write_text(json.dumps(table))
    except OSError as error:
        raise _unwritable(folder, error) from None
    return folder


def rendered_world(count: int = SCENES, notify: Callable[[str], None] | None = None, seed: int = 0) -> Path:
    """The folder of the first `count` test scenes in the user's cache, rendered if it is not there as it was rendered.

    `notify` gets a line when they are rendered. Raises OutputError where the cache cannot be written.
    """
    folder = (cache_folder() or user_cache()) / f"world-{WORLD_VERSION}-{seed}-{count}"
    if _intact(folder):
        return folder
    if notify is not None:
        notify(f"Rendering {count} scenes once to {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    with whole_folder(folder, "the world") as temporary:
        world = write_world(temporary, "test", count, seed)
        (world / DIGESTS).write_text("".join(f"{line}\n" for line in _digests(world)))
    return folder


def _intact(folder: Path) -> bool:
    """Whether a rendered world's files are all those that were rendered, and no others."""
    try:
        return read_regular(folder / DIGESTS, 1 << 26).decode().splitlines() == _digests(folder)
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> list[str]:
    """SHA-256 and name of each file, as `sha256sum` writes them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    return [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}" for path in files]


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write the world to {folder}: {(error.strerror or str(error)).lower()}")


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


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write into.")],
    train: Annotated[int, typer.Option(help="Scenes of the training split.")] = 0,
    val: Annotated[int, typer.Option(help="Scenes of the validation split.")] = 0,
    test: Annotated[int, typer.Option(help="Scenes of the test split.")] = 0,
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
) -> None:
    """Write scenes of the procedural world. Example: --output world --val 500"""
    from rich.progress import Progress as Bar

    with Bar() as bar:
        task = bar.add_task("")
        for split, count in zip(SPLITS, (train, val, test), strict=True):
            if count:
                write_world(
                    output, split, count, seed,
                    lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
                )  # fmt: skip
    print(output)


if __name__ == "__main__":
    typer.run(main)
