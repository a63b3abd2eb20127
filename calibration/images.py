"""The images a calibration looks at: a seeded choice of a folder's, or scenes of the demo model's procedural world."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vocabseg.calibration.errors import CalibrationError
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.images import load_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FEWEST, MOST = 32, 512
# Of the procedural world: never "test", on which the demo model is judged.
WORLD_SPLIT = "val"

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """One image: its name in reports, the SHA-256 of its file or of its pixels, and how to read it."""

    name: str
    sha256: str
    read: Callable[[], np.ndarray]


def choose_images(folder: str | Path | None, count: int, seed: int, notify: Notify) -> list[Chosen]:
    """`count` images for a calibration, the same ones for the same folder, count and seed.

    Without a folder they are scenes of the procedural world. Images that cannot be read are told through `notify` and
    others take their place. Raises CalibrationError for a count out of range, and where there are too few images.
    """
    if not FEWEST <= count <= MOST:
        raise CalibrationError(f"{count} images are asked for: a calibration takes {FEWEST} to {MOST}")
    return list(_scenes(count, seed)) if folder is None else _from_folder(Path(folder), count, seed, notify)


def identity(images: list[Chosen]) -> str:
    """A digest that changes when any of the images, or their order, does."""
    return hashlib.sha256("".join(image.sha256 for image in images).encode()).hexdigest()


def _scenes(count: int, seed: int) -> Iterator[Chosen]:
    from vocabseg.benchmarks.datasets.world import render_scene

    for index in range(count):

        def read(index: int = index) -> np.ndarray:
            return render_scene(seed, WORLD_SPLIT, index).image

        pixels = read()
        yield Chosen(f"world-{WORLD_SPLIT}-{seed}-{index:06d}", hashlib.sha256(pixels.tobytes()).hexdigest(), read)


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
        chosen.append(Chosen(str(path.relative_to(folder)), _sha256(path), lambda path=path: load_image(path)))
    if len(chosen) < FEWEST:
        left_out = f", and {len(broken)} that cannot be read" if broken else ""
        raise CalibrationError(
            f"--images {folder} holds {len(chosen)} image{'s' if len(chosen) != 1 else ''}{left_out}: a calibration "
            f"needs at least {FEWEST}, or its ranges would be those of a few pictures"
        )
    if len(chosen) < count:
        notify(f"{folder} holds {len(chosen)} images, {count} were asked for: going on with all of them")
    return chosen


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place) / name for name in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
