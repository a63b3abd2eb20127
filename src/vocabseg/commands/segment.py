"""`vocabseg segment`: images and class names in; overlays, label maps and JSON out."""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vocabseg.commands.options import (
    FOREIGN,
    BundleOption,
    Classes,
    Contrast,
    Device,
    Engine,
    Examples,
    Other,
    Precision,
    Quiet,
    Seen,
    Settings,
    Target,
    Templates,
    example_files,
    foreign_to_demo,
    list_files,
    refined,
    vocabulary_of,
    with_examples,
    with_groups,
    with_other,
)
from vocabseg.commands.segment_files import Kind, Work, masks_for, planned
from vocabseg.commands.segment_video import VideoOptions, run_video, video_work
from vocabseg.commands.terminal import FAILED, announcer, counting, progress
from vocabseg.runtime.errors import ConfigurationError, VocabsegError
from vocabseg.runtime.progress import Progress, counted
from vocabseg.runtime.result.style import Style

if TYPE_CHECKING:
    from vocabseg.runtime.result.result import Result
    from vocabseg.runtime.segmenter.many import Outcome
    from vocabseg.runtime.segmenter.mask_files import MaskFiles
    from vocabseg.runtime.segmenter.segmenter import Segmenter
    from vocabseg.runtime.text.vocabulary import Vocabulary

HELP = "Segment images into the classes you name; writes an overlay with a legend, and on request labels and JSON."
EXAMPLE = (
    "Example: vocabseg segment photo.jpg --bundle my-bundle --classes 'cat, grass, sky' --output overlay.png\n\n"
    "With the built-in demo model: vocabseg segment examples/scene.png\n\n"
    "Several images: vocabseg segment photos/ more/*.jpg --bundle my-bundle --classes @names.txt --output results/\n\n"
    "With masks of your own: vocabseg segment photo.jpg --masks sam.json --bundle my-bundle --classes 'cat, grass'\n\n"
    "A video: vocabseg segment clip.mp4 --bundle my-bundle --classes 'person, car, road' --track --output out.mp4\n\n"
    "Exit code 3: some of several images could not be segmented; each of them is named, and the others are done. A "
    "video that breaks off is written up to there."
)


@dataclass(frozen=True)
class Panoptic:
    """How masks become panoptic segments, as the options say."""

    things: Annotated[
        str | None,
        typer.Option("--things", help="Which classes are countable, like --classes. Default: as in its file, or all."),
    ] = None
    object_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Panoptic: a mask takes part above this class probability.")
    ] = 0.8
    overlap_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Panoptic: a segment keeps at least this share of its mask.")
    ] = 0.8

    def check(self, kinds: list[Kind], classes: "Vocabulary", say: Callable[[str], None], track: bool = False) -> None:
        """Raise ConfigurationError where there are no panoptic results, or a thing is none of the classes."""
        wanted = track or any(kind in (Kind.panoptic, Kind.coco_panoptic) for kind in kinds)
        if self != Panoptic() and not wanted:
            raise ConfigurationError(
                "--things and its thresholds go with --write panoptic or coco-panoptic, or --track"
            )
        if self.things is None and wanted and classes.categories.things is None:
            say("Without --things every class is countable: each object becomes a segment of its own")
        for name in () if self.things is None else vocabulary_of(self.things):
            if name not in classes.names:
                raise ConfigurationError(f"--things {name!r} is none of the {len(classes)} classes: use their names")

    @property
    def selection(self) -> tuple[tuple[str, ...] | None, float, float]:
        """Things and thresholds, as `Result.panoptic` takes them."""
        names = None if self.things is None else vocabulary_of(self.things).names
        return names, self.object_threshold, self.overlap_threshold

    def save(self, result: "Result", kind: Kind, image: str, path: Path, info: dict[str, Any]) -> None:
        """Write one of the two panoptic kinds."""
        how = (*self.selection, info)
        if kind is Kind.panoptic:
            result.save_panoptic(path, *how)
        else:
            result.save_coco_panoptic(path, image, *how)


@dataclass(frozen=True)
class Look:
    """How the picture is drawn, as the options say."""

    style: Annotated[
        Style, typer.Option(help="overlay: colours over the photo; flat: without it; outline: borders over the photo.")
    ] = Style.overlay
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Write names on the regions.")] = True

    def check(self, kinds: list[Kind]) -> None:
        """Raise ConfigurationError where no picture is written."""
        if self != Look() and Kind.overlay not in kinds:
            raise ConfigurationError("--style and --no-labels go with --write overlay")


@with_groups
def segment(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, globs in quotation marks, URLs, or - for standard input; or one video file, "
            "stream (rtsp://...) or camera (0).",
            show_default=False,
        ),
    ],
    classes: Classes = None,
    other: Other = False,
    contrast: Contrast = None,
    examples: Examples = None,
    bundle: BundleOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="A file; or a folder, which is made (several images, or a / at the end)."),
    ] = None,
    write: Annotated[
        list[Kind] | None, typer.Option("--write", "-w", help="What to write; may be repeated. Default: overlay.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option("--masks", help="Your own masks: .npz, COCO's or SAM's .json, or a folder (docs/proposals.md)."),
    ] = None,
    seen: Seen = None,
    template: Templates = None,
    min_score: Annotated[
        float, typer.Option("--min-score", min=0, max=1, help="Pixels with a lower score get no class (label -1).")
    ] = 0,
    settings: Settings = None,
    engine: Engine = None,
    device: Device = "auto",
    precision: Precision = None,
    quiet: Quiet = False,
    *,
    panoptic: Panoptic,
    look: Look,
    video: VideoOptions,
) -> None:
    from vocabseg.runtime.files import check_apart

    kinds = list(dict.fromkeys(write or [Kind.overlay]))
    look.check(kinds)
    say = announcer(quiet)
    lists = map(Path, list_files(classes, seen, contrast))
    own = [] if masks is None else [masks, *masks.rglob("*")]
    shown = map(Path, itertools.chain(*example_files(examples).values()))
    inputs = [*lists, *own, *shown]
    film = video_work(images, output, kinds, inputs, video, say)
    if film is not None and masks is not None:
        raise ConfigurationError("--masks are those of images, not of a video: leave them out")
    work = planned(images, output, kinds, inputs, say) if film is None else []
    given = None if masks is None else masks_for(work, masks)
    names = with_examples(None if classes is None else vocabulary_of(classes), examples)
    target = Target(bundle, device, engine, precision, settings)
    outputs = [path for each in work for path in each.paths] if film is None else film.paths
    check_apart(outputs, target.opened.folder.rglob("*"))
    if given is None:
        target.opened.require_proposals()
    segmenter = target.segmenter()
    vocabulary = with_other(refined(segmenter.vocabulary(names), seen, template), other, contrast)
    panoptic.check(kinds, vocabulary, say, video.track)
    if foreign_to_demo(target.opened, vocabulary):
        print(f"vocabseg: {FOREIGN}", file=sys.stderr)
    if segmenter.bundle.manifest.weights_license is not None:
        say(f"The weights of {segmenter.bundle.manifest.name} are under {segmenter.bundle.manifest.weights_license}")
    if film is not None:
        return run_video(
            film, segmenter, vocabulary, panoptic.selection, (look.style, look.labels), min_score, quiet, say
        )
    info: dict[str, Any] = {}
    if not {Kind.overlay, Kind.labels}.issuperset(kinds):
        info = _info(segmenter, vocabulary) | {"min_score": min_score}
    what = work[0].name if len(work) == 1 else counted(len(work), "image")
    manifest = segmenter.bundle.manifest
    say(f"Segmenting {what} into {counted(len(vocabulary), 'class')} with {manifest.name} ({segmenter.choice.key})")
    written: list[Path] = []
    try:
        if len(work) == 1:
            with progress(quiet) as report:
                result = _segment_one(segmenter, work[0], vocabulary, given, report)
                report("writing", 0, 1)
                written += _save(result.confident(min_score), work[0], panoptic, look, info)
        elif failed := _segment_all(
            segmenter, work, vocabulary, given, quiet,
            lambda result, one: written.extend(_save(result.confident(min_score), one, panoptic, look, info)),
        ):  # fmt: skip
            print(f"vocabseg: {failed} of {counted(len(work), 'image')} could not be segmented", file=sys.stderr)
            raise typer.Exit(FAILED)
    finally:
        for path in written:  # not while a progress bar shows, which would take the lines
            print(path)


def _segment_one(
    segmenter: "Segmenter",
    work: Work,
    vocabulary: "Vocabulary",
    given: "MaskFiles | None",
    report: Progress | None = None,
) -> "Result":
    from vocabseg.runtime.images import load_image

    if given is None:
        return segmenter(work.source, vocabulary, report)
    segmenter.embed_names(vocabulary, report)
    pixels = load_image(work.source)
    masks = given.of(work.name, (pixels.shape[0], pixels.shape[1]))
    return segmenter.regions(pixels, masks, report).classify(vocabulary)


def _segment_all(
    segmenter: "Segmenter",
    work: list[Work],
    vocabulary: "Vocabulary",
    given: "MaskFiles | None",
    quiet: bool,
    save: Callable[["Result", Work], None],
) -> int:
    """Segment several images, whatever becomes of each; returns how many failed."""
    from vocabseg.runtime.segmenter.many import attempt

    with progress(quiet) as stages:
        segmenter.embed_names(vocabulary, stages)
    failed = 0
    outcomes: Iterator[Outcome]
    if given is None:
        outcomes = segmenter.segment_many((each.source for each in work), vocabulary, on_error="yield")
    else:
        outcomes = (attempt(_segment_one, segmenter, each, vocabulary, given) for each in work)
    with counting(quiet, "opening the model") as report:
        for done, (each, outcome) in enumerate(zip(work, outcomes, strict=True), 1):
            try:
                if isinstance(outcome, VocabsegError):
                    raise outcome
                save(outcome, each)
            except VocabsegError as error:
                print(f"vocabseg: {each.image}: {error}", file=sys.stderr)
                failed += 1
            report(each.name, done, len(work))
    return failed


def _save(result: "Result", work: Work, panoptic: Panoptic, look: Look, info: dict[str, Any]) -> list[Path]:
    from vocabseg.runtime.files import make_folder

    info = {"file": work.image, **info}
    for kind, path in work.files.items():
        make_folder(path.parent)
        if kind is Kind.overlay:
            result.save(path, look.style, look.labels)
        elif kind is Kind.labels:
            result.save_labels(path)
        elif kind is Kind.json:
            result.save_json(path, info)
        else:
            panoptic.save(result, kind, work.name, path, info)
    return work.paths


def _info(segmenter: "Segmenter", vocabulary: "Vocabulary") -> dict[str, Any]:
    """What the results depend on, besides the image."""
    import vocabseg

    return {
        "model": segmenter.bundle.manifest.name,
        "weights_license": segmenter.bundle.manifest.weights_license,
        "engine": segmenter.choice.key,
        "vocabseg": vocabseg.__version__,
        "settings": segmenter.bundle.manifest.settings(),
        "seen": None if vocabulary.seen is None else vocabulary.seen.tolist(),
        "templates": vocabulary.templates,
        **({} if vocabulary.plain else {"vocabulary": vocabulary.described()}),
    }
