"""What is segmented when nobody says what: the packaged photo and rendered scenes, and the names to ask for."""

from importlib.resources import as_file, files
from pathlib import Path

from vocabseg.benchmarks.datasets.voc import CLASSES as VOC_CLASSES
from vocabseg.benchmarks.scenes.world import render_scene
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.text.vocabulary import Vocabulary

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SCENES = 3


def default_images(folder: Path) -> list[Path]:
    """Write the packaged photo and three scenes of the procedural world into `folder`; returns their files."""
    from PIL import Image

    photo = folder / "photo.jpg"
    with as_file(files("vocabseg.export") / "sample.jpg") as own:
        photo.write_bytes(own.read_bytes())
    found = [photo]
    for index in range(SCENES):
        path = folder / f"scene-{index}.png"
        Image.fromarray(render_scene(0, "test", index).image).save(path)
        found.append(path)
    return found


def images_in(folder: Path, limit: int) -> list[Path]:
    """The first `limit` images of a folder, or the one image given; raises ImageError for none or broken ones."""
    if folder.is_file():
        found = [folder]
    elif folder.is_dir():
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:limit]
    else:
        raise ImageError(f"--images {folder}: there is no such folder; give one with images")
    if not found:
        raise ImageError(f"--images {folder} holds no image ({', '.join(SUFFIXES)}); give another folder")
    for path in found:
        load_image(path)
    return found


def default_vocabulary(bundle: Bundle) -> Vocabulary:
    """The bundle's own names where it declares some, else PASCAL VOC's 20."""
    manifest = bundle.manifest
    if manifest.vocabulary is None:
        return Vocabulary(VOC_CLASSES)
    return Vocabulary(manifest.vocabulary, manifest.seen)
