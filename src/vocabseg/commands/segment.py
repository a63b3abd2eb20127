"""`vocabseg segment`: images and class names in; overlays, label maps and JSON out."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import BundleOption, Classes, Device, Engine, Precision, Quiet, Settings, Target
from vocabseg.commands.terminal import announcer, progress
from vocabseg.runtime.errors import OutputError

if TYPE_CHECKING:
    from vocabseg.runtime.result.result import Result

HELP = "Segment images into the classes you name; writes an overlay with a legend, and on request labels and JSON."
EXAMPLE = (
    "Example: vocabseg segment photo.jpg --bundle my-bundle --classes 'cat, grass, sky' --output overlay.png\n\n"
    "With the built-in demo model: vocabseg segment examples/scene.png\n\n"
    "Several images: vocabseg segment *.jpg --bundle my-bundle --classes @names.txt --output results/ --write json"
)


class Kind(StrEnum):
    """What can be written of a result."""

    overlay = "overlay"
    labels = "labels"
    json = "json"
    panoptic = "panoptic"


SUFFIXES = {Kind.overlay: ".png", Kind.labels: "_labels.png", Kind.json: ".json", Kind.panoptic: "_panoptic.json"}


def segment(
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    classes: Classes = None,
    bundle: BundleOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file, or a folder (several images: a folder).")
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
    from vocabseg.runtime.text.vocabulary import Vocabulary

    kinds = list(dict.fromkeys(write or [Kind.overlay]))
    outputs = [_outputs(image, output, kinds, len(images)) for image in images]
    _check_outputs(outputs)
    names = None if classes is None else Vocabulary.of(classes)
    segmenter = Target(bundle, device, engine, precision, settings).segmenter()
    vocabulary = segmenter.vocabulary(names)
    if seen is not None or template:
        flags = vocabulary.seen if seen is None else Vocabulary.of(seen).names
        vocabulary = Vocabulary(vocabulary.names, flags, template or None)
    what = images[0].name if len(images) == 1 else f"{len(images)} images"
    how = f"with {segmenter.bundle.manifest.name} ({segmenter.choice.key})"
    announcer(quiet)(f"Segmenting {what} into {len(vocabulary)} classes {how}")
    for image, files in zip(images, outputs, strict=True):
        with progress(quiet) as report:
            result = segmenter(image, vocabulary, report)
            report("writing", 0, 1)
            _save(result, files)
        for path in files.values():
            print(path)


def _outputs(image: Path, output: Path | None, kinds: list[Kind], count: int) -> dict[Kind, Path]:
    """Where each kind of output of one image goes."""
    if output is None:
        stem = Path(f"{image.stem}_segmented")
    elif output.is_dir() or count > 1 or str(output).endswith("/"):
        stem = output / image.stem
    elif len(kinds) == 1:
        return {kinds[0]: output}
    else:
        first = {Kind.overlay: output} if Kind.overlay in kinds else {}
        stem = output.with_suffix("")
        return {kind: first.get(kind, stem.with_name(stem.name + SUFFIXES[kind])) for kind in kinds}
    return {kind: stem.with_name(stem.name + SUFFIXES[kind]) for kind in kinds}


def _check_outputs(outputs: list[dict[Kind, Path]]) -> None:
    """Check before the work that its results can be written; raises OutputError."""
    from vocabseg.runtime.files import check_writable

    paths = [path for files in outputs for path in files.values()]
    for path in paths:
        if paths.count(path) > 1:
            raise OutputError(f"several results would be written to {path}: rename the images or segment them apart")
        check_writable(path)


def _save(result: "Result", files: dict[Kind, Path]) -> None:
    writers = {Kind.overlay: result.save, Kind.labels: result.save_labels, Kind.json: result.save_json}
    for kind, path in files.items():
        writers.get(kind, result.save_panoptic)(path)
