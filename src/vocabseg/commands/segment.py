"""`vocabseg segment`: images and class names in; overlays, label maps and JSON out."""

import glob
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from vocabseg.commands.options import (
    BundleOption,
    Classes,
    Device,
    Engine,
    Precision,
    Quiet,
    Settings,
    Target,
    vocabulary_of,
)
from vocabseg.commands.terminal import FAILED, announcer, counting, progress
from vocabseg.runtime.errors import OutputError, VocabsegError
from vocabseg.runtime.progress import counted

if TYPE_CHECKING:
    from vocabseg.runtime.result.result import Result
    from vocabseg.runtime.segmenter.segmenter import Segmenter
    from vocabseg.runtime.text.vocabulary import Vocabulary

HELP = "Segment images into the classes you name; writes an overlay with a legend, and on request labels and JSON."
EXAMPLE = (
    "Example: vocabseg segment photo.jpg --bundle my-bundle --classes 'cat, grass, sky' --output overlay.png\n\n"
    "With the built-in demo model: vocabseg segment examples/scene.png\n\n"
    "Several images: vocabseg segment photos/ more/*.jpg --bundle my-bundle --classes @names.txt --output results/\n\n"
    "Exit code 3: some of several images could not be segmented; each of them is named, and the others are done."
)


class Kind(StrEnum):
    """What can be written of a result."""

    overlay = "overlay"
    labels = "labels"
    json = "json"
    panoptic = "panoptic"


SUFFIXES = {Kind.overlay: ".png", Kind.labels: "_labels.png", Kind.json: ".json", Kind.panoptic: "_panoptic.json"}
# In a folder, which may be the images' own, nothing is named like an image or like a file that describes it.
IN_FOLDER = {**SUFFIXES, Kind.overlay: "_segmented.png", Kind.json: "_segmented.json"}


class Work(NamedTuple):
    """An image, and where each kind of output of it goes."""

    image: Path
    files: dict[Kind, Path]


def segment(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders, or globs in quotation marks.", show_default=False)
    ],
    classes: Classes = None,
    bundle: BundleOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="A file; or a folder, which is made (several images, or a / at the end)."),
    ] = None,
    write: Annotated[
        list[Kind] | None, typer.Option("--write", "-w", help="What to write; may be repeated. Default: overlay.")
    ] = None,
    seen: Annotated[
        str | None, typer.Option("--seen", help="Which of the classes were seen in training, like --classes.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option("--template", help="Prompt template with one {}; may be repeated.")
    ] = None,
    settings: Settings = None,
    engine: Engine = None,
    device: Device = "auto",
    precision: Precision = None,
    quiet: Quiet = False,
) -> None:
    from vocabseg.runtime.files import check_apart
    from vocabseg.runtime.text.vocabulary import Vocabulary

    kinds = list(dict.fromkeys(write or [Kind.overlay]))
    say = announcer(quiet)
    found = list(_found(images, output, say))
    folder = None if output is None else Path(output)
    if folder is not None and not (folder.is_dir() or len(found) > 1 or str(output).endswith(("/", os.sep))):
        work, folder = [Work(found[0][0], _named(folder, kinds))], None
    else:
        work = [Work(path, _placed(folder, stem, kinds)) for path, stem in found]
    lists = [Path(text[1:]) for text in (classes, seen) if text is not None and text.startswith("@")]
    _check_outputs(work, folder, lists)
    names = None if classes is None else vocabulary_of(classes)
    target = Target(bundle, device, engine, precision, settings)
    check_apart((path for each in work for path in each.files.values()), target.opened.folder.rglob("*"))
    segmenter = target.segmenter()
    vocabulary = segmenter.vocabulary(names)
    if seen is not None or template:
        flags = vocabulary.seen if seen is None else vocabulary_of(seen).names
        vocabulary = Vocabulary(vocabulary.names, flags, template or None)
    what = work[0].image.name if len(work) == 1 else counted(len(work), "image")
    how = f"with {segmenter.bundle.manifest.name} ({segmenter.choice.key})"
    say(f"Segmenting {what} into {counted(len(vocabulary), 'class', 'classes')} {how}")
    written: list[Path] = []
    try:
        if len(work) == 1:
            with progress(quiet) as report:
                result = segmenter(work[0].image, vocabulary, report)
                report("writing", 0, 1)
                written += _save(result, work[0].files)
        elif failed := _segment_all(segmenter, work, vocabulary, quiet, written):
            print(f"vocabseg: {failed} of {counted(len(work), 'image')} could not be segmented", file=sys.stderr)
            raise typer.Exit(FAILED)
    finally:
        for path in written:  # not while a progress bar shows, which would take the lines
            print(path)


def _segment_all(
    segmenter: "Segmenter", work: list[Work], vocabulary: "Vocabulary", quiet: bool, written: list[Path]
) -> int:
    """Segment several images, whatever becomes of each; returns how many failed."""
    with progress(quiet) as stages:
        segmenter.embed_names(vocabulary, stages)
    failed = 0
    outcomes = segmenter.segment_many((each.image for each in work), vocabulary, on_error="yield")
    with counting(quiet, "opening the model") as report:
        for done, (each, outcome) in enumerate(zip(work, outcomes, strict=True), 1):
            try:
                if isinstance(outcome, VocabsegError):
                    raise outcome
                written += _save(outcome, each.files)
            except VocabsegError as error:
                print(f"vocabseg: {each.image}: {error}", file=sys.stderr)
                failed += 1
            report(each.image.name, done, len(work))
    return failed


def _found(images: list[str], output: str | None, say: Callable[[str], None]) -> Iterator[tuple[Path, str]]:
    """Each image, with its path below the folder or glob it was found in, without the suffix."""
    from vocabseg.batch.inputs.find import find_files
    from vocabseg.batch.inputs.items import InputError, is_image

    for given in images:
        path = Path(given)
        if path.is_file() or not (path.is_dir() or glob.has_magic(given)):
            yield path, path.stem  # one that is not there is told as any image that cannot be read
            continue
        others: dict[str, str] = {}
        files = dict(find_files(given, others.__setitem__, output and os.path.realpath(output)))
        pictures = [(Path(file), os.path.splitext(name)[0]) for file, name in files.items() if is_image(file)]
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


def _check_outputs(work: list[Work], folder: Path | None, inputs: list[Path]) -> None:
    """Check before the work that its results can be written, and replace nothing that it reads; raises OutputError.

    A `folder` that the results go to may still be missing.
    """
    from vocabseg.runtime.files import check_apart, check_folder, check_writable
    from vocabseg.runtime.result.writing import PICTURES, check_suffix

    if folder is not None:
        if len(work) > 1 and not folder.exists() and folder.suffix.lower() in (*PICTURES, ".json"):
            raise OutputError(f"{str(folder)!r} is the name of a file, and there are {len(work)} images: name a folder")
        check_folder(folder)
    taken: dict[str, Path] = {}
    for each in work:
        for kind, path in each.files.items():
            check_suffix(kind, path)
            if folder is None or path.parent.is_dir():
                check_writable(path)
            place = os.path.realpath(path)
            if place in taken:
                raise OutputError(
                    f"several results would be written to {path}: rename {taken[place]} or {each.image}, or segment "
                    "them apart"
                )
            taken[place] = each.image
    check_apart(taken, [*(each.image for each in work), *inputs])


def _save(result: "Result", files: dict[Kind, Path]) -> list[Path]:
    from vocabseg.runtime.files import make_folder

    writers = {Kind.overlay: result.save, Kind.labels: result.save_labels, Kind.json: result.save_json}
    for kind, path in files.items():
        make_folder(path.parent)
        writers.get(kind, result.save_panoptic)(path)
    return list(files.values())
