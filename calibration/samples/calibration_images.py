"""The images a calibration looks at: a seeded choice from a folder, or scenes of the demo model's procedural world."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from vocabseg.calibration.failures import CalibrationError
from vocabseg.runtime.bundle.manifest import sha256_file
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.images import IMAGE_SUFFIXES, load_image

FEWEST, MOST = 32, 512
# Further images, on which schemes are compared.
HELD = 8
# Of the procedural world: never "test", on which the demo model is judged.
WORLD_SPLIT = "val"
# Of the scenes that precisions are tried on; larger than any seed that people choose.
TRIAL_SEED = 1_000_003

Notify = Callable[[str], None]


@dataclass(frozen=True)
class CalibrationImage:
    """One image: its name in reports, the SHA-256 of its file or of its pixels, and how to read it."""

    name: str
    sha256: str
    read: Callable[[], np.ndarray]


def choose_images(
    folder: Path | None, count: int, seed: int, notify: Notify
) -> tuple[list[CalibrationImage], list[CalibrationImage]]:
    """`count` images for the ranges and HELD others to compare on; always the same for a folder, count and seed.

    Without a folder they are scenes of the procedural world. An image that cannot be read is reported through `notify`
    and replaced by another. Where a folder has too few, the comparison uses some of the images for the ranges. Raises
    CalibrationError for a count out of range, and for a folder with fewer than FEWEST images.
    """
    if not FEWEST <= count <= MOST:
        raise CalibrationError(f"--count {count}: a calibration takes {FEWEST} to {MOST} images")
    if folder is None:
        found = list(_scenes(count + HELD, seed))
        return found[:count], found[count:]
    found = _from_folder(folder, count + HELD, seed, notify)
    images = found[: max(FEWEST, min(count, len(found) - HELD))]
    if len(images) < count:
        notify(f"{folder} holds {len(found)} images, {count + HELD} are wanted: ranges come from {len(images)} of them")
    return images, found[len(images) :][:HELD] or images[-HELD:]


def image_files(folder: Path, limit: int) -> list[Path]:
    """The first `limit` images below a folder that can be read, by name."""
    return list(islice(_readable(candidates(folder), lambda line: None), limit))


def trial_scenes(folder: Path, count: int, notify: Notify) -> Path:
    """The folder of labelled scenes to try precisions on, rendered below `folder` if they are not there yet.

    They are from the split that ranges come from, but from another seed: no scene is in both.
    """
    from vocabseg.benchmarks.scenes.files import write_world
    from vocabseg.benchmarks.scenes.world import WORLD_VERSION

    target = folder / f"scenes-{WORLD_VERSION}-{count}"
    if not (target / "classes.json").is_file() or len(list((target / "images" / WORLD_SPLIT).glob("*"))) < count:
        notify(f"Rendering {count} scenes to {target}")
        write_world(target, WORLD_SPLIT, count, TRIAL_SEED)
    return target


def identity(images: Sequence[CalibrationImage]) -> str:
    """A digest that changes with any of the images, and with their order."""
    return hashlib.sha256("".join(image.sha256 for image in images).encode()).hexdigest()


def _scenes(count: int, seed: int) -> Iterator[CalibrationImage]:
    for index in range(count):
        read = partial(_scene, seed, index)
        digest = hashlib.sha256(read().tobytes()).hexdigest()
        yield CalibrationImage(f"world-{WORLD_SPLIT}-{seed}-{index:06d}", digest, read)


def _scene(seed: int, index: int) -> np.ndarray:
    from vocabseg.benchmarks.scenes.world import render_scene

    return render_scene(seed, WORLD_SPLIT, index).image


def _from_folder(folder: Path, count: int, seed: int, notify: Notify) -> list[CalibrationImage]:
    if not folder.is_dir():
        raise CalibrationError(f"--images {folder}: there is no such folder; give one with at least {FEWEST} images")
    files = candidates(folder)
    if not files:
        raise CalibrationError(f"--images {folder} holds no image: give another folder")
    order = np.random.default_rng(seed).permutation(len(files))
    broken: list[str] = []

    def left_out(line: str) -> None:
        broken.append(line)
        notify(f"left out: {line}")

    chosen = [
        CalibrationImage(str(path.relative_to(folder)), sha256_file(path), partial(load_image, path))
        for path in islice(_readable((files[place] for place in order.tolist()), left_out), count)
    ]
    if len(chosen) < FEWEST:
        others = f", and {len(broken)} that cannot be read" if broken else ""
        raise CalibrationError(
            f"--images {folder} holds {len(chosen)} image{'s' if len(chosen) != 1 else ''}{others}: a calibration "
            f"needs at least {FEWEST}, or its ranges would be those of a few pictures"
        )
    return chosen


def candidates(folder: Path) -> list[Path]:
    """The files below a folder whose names end as those of images do, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _readable(paths: Iterable[Path], left_out: Notify) -> Iterator[Path]:
    for path in paths:
        try:
            load_image(path)
        except ImageError as error:
            left_out(str(error))
        else:
            yield path
