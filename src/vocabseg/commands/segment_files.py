"""The files of `vocabseg segment`: which images it reads, and where each kind of output goes."""

import glob
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from vocabseg.runtime.errors import ImageError, OutputError
from vocabseg.runtime.files import check_apart, check_folder, check_writable
from vocabseg.runtime.progress import counted

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.mask_files import MaskFiles

# Standard input as an image; and limits of images behind a URL: seconds without an answer, and bytes.
STDIN = "-"
TIMEOUT, LARGEST = 30, 500_000_000


class Kind(StrEnum):
    """What can be written of a result."""

    overlay = "overlay"
    labels = "labels"
    json = "json"
    panoptic = "panoptic"
    coco_panoptic = "coco-panoptic"


SUFFIXES = {
    Kind.overlay: ".png",
    Kind.labels: "_labels.png",
    Kind.json: ".json",
    Kind.panoptic: "_panoptic.json",
    Kind.coco_panoptic: "_coco_panoptic.json",  # and the PNG beside it
}
# In a folder, which may be the images' own, nothing is named like an image or like a file that describes it.
IN_FOLDER = {**SUFFIXES, Kind.overlay: "_segmented.png", Kind.json: "_segmented.json"}


class RemoteImage:
    """An image file behind a URL, fetched when it is read."""

    def __init__(self, url: str):
        self.name = url

    def read(self) -> bytes:
        """The file; raises ImageError where it cannot be had within TIMEOUT seconds, or is larger than LARGEST."""
        from http.client import HTTPException
        from urllib.request import urlopen

        try:
            with urlopen(self.name, timeout=TIMEOUT) as answer:
                content: bytes = answer.read(LARGEST + 1)
        except (OSError, ValueError, HTTPException) as error:
            raise ImageError(f"cannot fetch {self.name!r}: {error}; check the address") from None
        if len(content) > LARGEST:
            raise ImageError(f"{self.name!r} has more than {LARGEST // 10**6} MB; fetch it and make it smaller")
        return content


class Work(NamedTuple):
    """An image, and where each kind of output of it goes."""

    image: str
    files: dict[Kind, Path]

    @property
    def name(self) -> str:
        """The image's name, without the folders."""
        return "stdin" if self.image == STDIN else _last(self.image)

    @property
    def source(self) -> Any:
        """What `load_image` takes."""
        if self.image == STDIN:
            return sys.stdin.buffer
        return RemoteImage(self.image) if _is_url(self.image) else self.image

    @property
    def paths(self) -> list[Path]:
        """All files to write."""
        pictures = [path.with_suffix(".png") for kind, path in self.files.items() if kind is Kind.coco_panoptic]
        return [*self.files.values(), *pictures]


def planned(
    images: list[str], output: str | None, kinds: list[Kind], inputs: list[Path], say: Callable[[str], None]
) -> list[Work]:
    """The work, after a check that its results can be written and replace neither an image nor another of `inputs`.

    `images` are files, folders, globs, URLs and "-" for standard input; `output` is a file, or a folder that may be
    missing: where it is one, ends in a slash, or there are several images. Raises InputError, OutputError.
    """
    found = list(found_images(images, output, say))
    folder = None if output is None else Path(output)
    if folder is not None and not (folder.is_dir() or len(found) > 1 or str(output).endswith(("/", os.sep))):
        work, folder = [Work(found[0][0], _named(folder, kinds))], None
    else:
        work = [Work(path, _placed(folder, stem, kinds)) for path, stem in found]
    _check(work, folder, inputs)
    return work


def masks_for(work: list[Work], masks: Path) -> "MaskFiles":
    """The masks given for the work's images, found by name; raises ImageError where two images have the same one."""
    from vocabseg.runtime.segmenter.mask_files import MaskFiles

    stems: dict[str, str] = {}
    for each in work:
        other = stems.setdefault(Path(each.name).stem, each.image)
        if other != each.image:
            raise ImageError(f"{other} and {each.image} would share their masks: segment them apart, or rename one")
    return MaskFiles(masks, alone=len(work) == 1)


def found_images(images: list[str], output: str | None, say: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """Each image, with its path below the folder or glob it was found in, without the suffix."""
    for given in images:
        path = Path(given)
        if given == STDIN or _is_url(given):
            yield given, "stdin" if given == STDIN else Path(_last(given)).stem
            continue
        if path.is_file() or not (path.is_dir() or glob.has_magic(given)):
            yield given, path.stem  # one that is not there is told as any image that cannot be read
            continue
        from vocabseg.batch.inputs.find import find_files
        from vocabseg.batch.inputs.items import InputError, is_image

        others: dict[str, str] = {}
        files = dict(find_files(given, others.__setitem__, output and os.path.realpath(output)))
        pictures = [(file, os.path.splitext(name)[0]) for file, name in files.items() if is_image(file)]
        if others:
            say(f"Left out of {given}: {counted(len(others), 'other file')}, such as {next(iter(others))}")
        if not pictures:
            raise InputError(f"no image found in {given!r}: no file in it ends in .jpg, .png, .webp or the like")
        yield from pictures


def _placed(folder: Path | None, stem: str, kinds: list[Kind]) -> dict[Kind, Path]:
    """The outputs of an image in a folder; without one they go to the working folder."""
    if folder is None:
        return {kind: Path(f"{Path(stem).name}_segmented{SUFFIXES[kind]}") for kind in kinds}
    return {kind: folder / f"{stem}{IN_FOLDER[kind]}" for kind in kinds}


def _named(file: Path, kinds: list[Kind]) -> dict[Kind, Path]:
    """The outputs of the only image: the overlay, or the only kind, gets the name itself."""
    if len(kinds) == 1:
        return {kinds[0]: file}
    others = {kind: file.with_name(file.stem + SUFFIXES[kind]) for kind in kinds}
    return others | ({Kind.overlay: file} if Kind.overlay in kinds else {})


def _check(work: list[Work], folder: Path | None, inputs: list[Path]) -> None:
    from vocabseg.runtime.result.writing import PICTURES, check_suffix

    if folder is not None:
        if len(work) > 1 and not folder.exists() and folder.suffix.lower() in (*PICTURES, ".json"):
            raise OutputError(f"{str(folder)!r} is the name of a file, and there are {len(work)} images: name a folder")
        check_folder(folder)
    taken: dict[str, str] = {}
    for each in work:
        for kind, path in each.files.items():
            check_suffix(kind, path)
        for path in each.paths:
            if folder is None or path.parent.is_dir():
                check_writable(path)
            place = os.path.realpath(path)
            if place in taken:
                raise OutputError(
                    f"several results would be written to {path}: rename {taken[place]} or {each.image}, or segment "
                    "them apart"
                )
            taken[place] = each.image
    check_apart(taken, [*(each.image for each in work if each.image != STDIN and not _is_url(each.image)), *inputs])


def _is_url(given: str) -> bool:
    return given.startswith(("http://", "https://"))


def _last(given: str) -> str:
    """The last part of a path or of a URL's path."""
    path = unquote(urlsplit(given).path) if _is_url(given) else given
    return Path(path).name or "image"
