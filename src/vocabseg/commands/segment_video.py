"""Videos in `vocabseg segment`: which inputs are one, where its results go, and how it ends."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from vocabseg.commands.segment_files import STDIN, Kind, found_images
from vocabseg.commands.terminal import FAILED, counting, printable
from vocabseg.runtime.errors import ConfigurationError, OutputError
from vocabseg.runtime.files import check_apart, check_folder, check_writable, make_folder
from vocabseg.runtime.progress import counted
from vocabseg.video.names import FORMATS, check_video_name, is_address, is_camera

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.segmenter import Segmenter
    from vocabseg.runtime.text.vocabulary import Vocabulary
    from vocabseg.video.source import FrameSource

# Of inputs that are taken for videos, besides those that can be written.
SUFFIXES = (*FORMATS, ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv")
LINES = ".jsonl"


@dataclass(frozen=True)
class VideoOptions:
    """What is done with the frames of a video, as the options say."""

    every: Annotated[
        int, typer.Option("--every", min=1, help="Video: segment every Nth frame, and write only these.")
    ] = 1
    hold: Annotated[
        bool, typer.Option("--hold", help="Video: with --every, write the frames between with the last labels, too.")
    ] = False
    track: Annotated[
        bool, typer.Option("--track", help="Video: number the objects of --things, and follow them (docs/video.md).")
    ] = False
    reuse: Annotated[
        bool,
        typer.Option("--reuse", help="Video, CPU: keep the embeddings of regions that stay the same; see the page."),
    ] = False
    fps: Annotated[float | None, typer.Option("--fps", help="Video from pictures: frames per second. Default: 25.")] = (
        None
    )


@dataclass(frozen=True)
class VideoWork:
    """A video to segment, where its results go, and how."""

    given: list[str]
    pictures: list[str] | None
    files: dict[Kind, Path]
    options: VideoOptions

    @property
    def paths(self) -> list[Path]:
        """All files to write."""
        return list(self.files.values())

    def open(self) -> "FrameSource":
        """The frames; raises VideoError."""
        from vocabseg.video.source import USUAL_RATE, Pictures, open_source

        if self.pictures is None:
            return open_source(self.given[0])
        return Pictures(self.pictures, USUAL_RATE if self.options.fps is None else self.options.fps)


def video_work(
    images: list[str],
    output: str | None,
    kinds: list[Kind],
    inputs: list[Path],
    options: VideoOptions,
    say: Callable[[str], None],
) -> VideoWork | None:
    """The work where the input is a video, a stream or a camera, or the output a video; None for images.

    Raises ConfigurationError for options that do not go together, and OutputError where results cannot be written.
    """
    wanted = output is not None and Path(output).suffix.lower() in FORMATS and not os.path.isdir(output)
    videos = [given for given in images if _is_video(given, wanted)]
    if not videos and not wanted:
        if options != VideoOptions():
            raise ConfigurationError(
                "--every, --hold, --track, --reuse and --fps go with a video, or a video as --output"
            )
        return None
    if videos and len(images) > 1:
        raise ConfigurationError(
            f"{videos[0]} is a video, and there are {len(images)} inputs: give one video at a time"
        )
    if others := [kind for kind in kinds if kind not in (Kind.overlay, Kind.json)]:
        raise ConfigurationError(f"--write {others[0]} is not written of a video: use overlay and json")
    if videos and options.fps is not None:
        raise ConfigurationError(f"--fps goes with pictures, and {videos[0]} has a rate of its own: leave it out")
    if options.hold and options.every == 1:
        raise ConfigurationError("--hold goes with --every 2 or more: else there is no frame between")
    if STDIN in images:
        raise ConfigurationError("a video is not made of standard input: give files")
    pictures = None if videos else [path for path, _ in found_images(images, output, say)]
    files = _files(images[0], output, kinds)
    for kind, path in files.items():
        if kind is Kind.overlay:
            check_video_name(path)
        elif path.suffix != LINES:
            raise OutputError(
                f"cannot write JSON of a video to {str(path)!r}: it has a line for each frame, name it {LINES}"
            )
        if path.parent.is_dir():
            check_writable(path)
        else:
            check_folder(path.parent)
    check_apart(files.values(), [*(pictures or images), *inputs])
    return VideoWork(images, pictures, files, options)


def run_video(
    work: VideoWork,
    segmenter: "Segmenter",
    vocabulary: "Vocabulary",
    selection: tuple[Any, float, float],
    look: tuple[str, bool],
    min_score: float,
    quiet: bool,
    say: Callable[[str], None],
) -> None:
    """Segment the video and write its results; raises KeyboardInterrupt after a clean stop by Ctrl-C or SIGTERM.

    `selection` are the things and thresholds of `Result.panoptic`, `look` the style and labels of `Result.draw`.
    Raises typer.Exit where the video ended early.
    """
    from vocabseg.video.recording import record
    from vocabseg.video.reuse import EmbeddingReuse
    from vocabseg.video.segmentation import segment_video
    from vocabseg.video.tracking import ObjectTracker

    options = work.options
    source = work.open()
    tracker = ObjectTracker(source.rate / options.every, *selection) if options.track else None
    reuse = EmbeddingReuse(segmenter.bundle.manifest.region.mask_threshold) if options.reuse else None
    frames = counted(source.total, "frame") if source.total else "frames"
    manifest = segmenter.bundle.manifest
    say(
        f"Segmenting {frames} of {source.name}, {source.rate:.4g} a second, into {counted(len(vocabulary), 'class')} "
        f"with {manifest.name} ({segmenter.choice.key})"
    )
    results = segment_video(
        segmenter, source, vocabulary, every=options.every, hold=options.hold, tracker=tracker, reuse=reuse
    )
    if min_score > 0:
        results = (replace(frame, result=frame.result.confident(min_score)) for frame in results)
    for path in work.paths:
        make_folder(path.parent)
    with stopping(source) as stopped, counting(quiet, "opening the model", noun="frame") as report:
        overlay, lines = (work.files.get(kind) for kind in (Kind.overlay, Kind.json))
        done = record(results, source, overlay, lines, 1 if options.hold else options.every, report, *look)
    say(f"{counted(done.frames, 'frame')} in {done.seconds:.1f} s, {done.frames / done.seconds:.1f} frames/s")
    if reuse is not None and reuse.regions:
        say(f"Embeddings of {reuse.reused:,} of {counted(reuse.regions, 'region')} were kept from earlier frames")
    if source.dropped:
        say(f"{counted(source.dropped, 'frame')} came faster than they could be segmented, and were left out")
    if source.damaged:
        say(f"{counted(source.damaged, 'piece')} of {source.name} could not be decoded, and were left out")
    if done.silenced:
        say(f"The video has no sound: {done.silenced}")
    for path in work.paths:
        print(path, flush=True)
    if stopped:
        raise KeyboardInterrupt
    if done.failure is not None:
        print(f"vocabseg: {printable(str(done.failure))}; the frames before are in the output", file=sys.stderr)
        raise typer.Exit(FAILED)


@contextmanager
def stopping(source: "FrameSource") -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM stop the source, so that what was begun is finished; the second one stops at once."""
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        source.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_video(given: str, wanted: bool) -> bool:
    """Whether an input is a video; `wanted` is whether the output is one."""
    if is_camera(given):
        return True
    if is_address(given):
        web = given.startswith(("http://", "https://"))
        return not web or wanted or Path(urlsplit(given).path).suffix.lower() in SUFFIXES
    return Path(given).suffix.lower() in (*SUFFIXES, *([".gif"] if wanted else [])) and not os.path.isdir(given)


def _files(given: str, output: str | None, kinds: list[Kind]) -> dict[Kind, Path]:
    suffixes = {Kind.overlay: ".mp4", Kind.json: LINES}
    if output is not None and not (os.path.isdir(output) or output.endswith(("/", os.sep))):
        path = Path(output)
        if len(kinds) == 1:
            return {kinds[0]: path}
        return {kind: path if kind is Kind.overlay else path.with_suffix(LINES) for kind in kinds}
    if is_camera(given):
        stem = f"camera{given}"
    else:
        stem = Path(unquote(urlsplit(given).path) if is_address(given) else given).stem or "stream"
    return {kind: Path(output or "") / f"{stem}_segmented{suffixes[kind]}" for kind in kinds}
