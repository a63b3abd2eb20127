"""The images a calibration looks at: a seeded choice of a folder's, or scenes of the demo model's procedural world."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vocabseg.calibration.errors import CalibrationError
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.images import load_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FEWEST, MOST = 32, 512
# Further images, on which schemes are compared.
HELD = 8
# Of the procedural world: never "test", on which the demo model is judged.
WORLD_SPLIT = "val"

# Of the scenes that precisions are tried on; above every seed that people choose.
TRIAL_SEED = 1_000_003

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """One image: its name in reports, the SHA-256 of its file or of its pixels, and how to read it."""

    name: str
    sha256: str
    read: Callable[[], np.ndarray]


def choose_images(
    folder: str | Path | None, count: int, seed: int, notify: Notify
) -> tuple[list[Chosen], list[Chosen]]:
    """`count` images for the ranges and HELD others to compare on; the same ones for the same folder, count and seed.

    Without a folder they are scenes of the procedural world. Images that cannot be read are told through `notify` and
    others take their place. Where a folder has too few, what is compared on is part of the first ones. Raises
    CalibrationError for a count out of range, and where there are fewer than FEWEST images.
    """
    if not FEWEST <= count <= MOST:
        raise CalibrationError(f"{count} images are asked for: a calibration takes {FEWEST} to {MOST}")
    if folder is None:
        found = list(_scenes(count + HELD, seed))
        return found[:count], found[count:]
    found = _from_folder(Path(folder), count + HELD, seed, notify)
    images = found[: max(FEWEST, min(count, len(found) - HELD))]
    held = found[len(images) :][:HELD]
    if len(images) < count:
        notify(f"{folder} holds {len(found)} images, {count + HELD} are wanted: ranges come from {len(images)} of them")
    return images, held or images[-HELD:]


def image_files(folder: Path) -> list[Path]:
    """The images below a folder that can be read, by name."""
    found = []
    for path in sorted(_files(folder)):
        if path.suffix.lower() in SUFFIXES:
            try:
                load_image(path)
            except ImageError:
                continue
            found.append(path)
    return found


def trial_scenes(folder: Path, count: int, notify: Notify) -> Path:
    """The folder of labelled scenes to try precisions on, rendered below `folder` when it is not there yet.

    They are of the split that ranges come from too, but of another seed: no scene is among both.
    """
    from vocabseg.benchmarks.scenes.files import write_world
    from vocabseg.benchmarks.scenes.world import WORLD_VERSION

    target = folder / f"scenes-{WORLD_VERSION}-{count}"
    if not (target / "classes.json").is_file() or len(list((target / "images" / WORLD_SPLIT).glob("*"))) < count:
        notify(f"Rendering {count} scenes to {target}")
        write_world(target, WORLD_SPLIT, count, TRIAL_SEED)
    return target


def identity(images: list[Chosen]) -> str:
    """A digest that changes when any of the images, or their order, does."""
    return hashlib.sha256("".join(image.sha256 for image in images).encode()).hexdigest()


def _scenes(count: int, seed: int) -> Iterator[Chosen]:
    for index in range(count):
        read = partial(_scene, seed, index)
        yield Chosen(f"world-{WORLD_SPLIT}-{seed}-{index:06d}", hashlib.sha256(read().tobytes()).hexdigest(), read)


def _scene(seed: int, index: int) -> np.ndarray:
    from vocabseg.benchmarks.scenes.world import render_scene

    return render_scene(seed, WORLD_SPLIT, index).image


def _from_folder(folder: Path, count: int, seed: int, notify: Notify) -> list[Chosen]:
    if not folder.is_dir():
        raise CalibrationError(f"--images {folder}: there is no such folder; give one with at least {FEWEST} images")
    found = sorted(path for path in _files(folder) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise CalibrationError(f"--images {folder} holds no image ({', '.join(SUFFIXES)}): give another folder")
    order = np.random.default_rng(seed).permutation(len(found))
    chosen: list[Chosen] = []
    broken: list[str] = []
    for place in order.tolist():
        if len(chosen) == count:
            break
        path = found[place]
        try:
            load_image(path)
        except ImageError as error:
            broken.append(str(error))
            notify(f"left out: {error}")
            continue
        chosen.append(Chosen(str(path.relative_to(folder)), _sha256(path), partial(load_image, path)))
    if len(chosen) < FEWEST:
        left_out = f", and {len(broken)} that cannot be read" if broken else ""
        raise CalibrationError(
            f"--images {folder} holds {len(chosen)} image{'s' if len(chosen) != 1 else ''}{left_out}: a calibration "
            f"needs at least {FEWEST}, or its ranges would be those of a few pictures"
        )
    return chosen


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place) / name for name in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
