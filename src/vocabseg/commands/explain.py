"""`vocabseg explain`: which masks voted at a pixel, with which weight, and what each was taken for."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    foreign_to_demo,
    list_files,
    refined,
    two_stage,
    vocabulary_of,
    with_examples,
    with_other,
)
from vocabseg.commands.segment_files import Work
from vocabseg.commands.terminal import announcer, print_rows, printable, progress
from vocabseg.runtime.errors import ConfigurationError, OutputError
from vocabseg.runtime.progress import counted

if TYPE_CHECKING:
    from vocabseg.runtime.result.votes import Explanation, Rating, Vote

HELP = "Tell why a pixel has its label: which masks voted there, and what each was taken for, by query and by CLIP."
EXAMPLE = (
    "Example: vocabseg explain photo.jpg --at 120,80 --bundle my-bundle --classes 'cat, grass, sky'\n\n"
    "As a page on which every click is answered: vocabseg explain examples/scene.png --html why.html\n\n"
    "Why it is not another class: vocabseg explain examples/scene.png --at 120,80 --for water"
)
HEADER = ("Mask", "Weight", "Votes", "Together", "By query", "By CLIP", "No object", "Box and area")


def explain(
    image: Annotated[str, typer.Argument(help="An image file, a URL, or - for standard input.", show_default=False)],
    at: Annotated[
        list[str] | None, typer.Option("--at", help="A pixel X,Y: column and row from 0; may be repeated.")
    ] = None,
    classes: Classes = None,
    other: Other = False,
    contrast: Contrast = None,
    examples: Examples = None,
    bundle: BundleOption = None,
    name: Annotated[
        str | None, typer.Option("--for", help="The class whose votes are listed. Default: each pixel's own.")
    ] = None,
    masks: Annotated[int, typer.Option(min=1, help="How many masks are listed of each pixel, most votes first.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page on which every click on the picture is answered.")
    ] = None,
    seen: Seen = None,
    template: Templates = None,
    settings: Settings = None,
    engine: Engine = None,
    device: Device = "auto",
    precision: Precision = None,
    quiet: Quiet = False,
) -> None:
    from vocabseg.runtime.files import atomic_write, check_apart, check_writable
    from vocabseg.runtime.images import load_image
    from vocabseg.runtime.result.votes import check_pixel

    pixels = [_pixel(text) for text in at or ()]
    if not pixels and html is None:
        raise ConfigurationError("nothing to explain: give a pixel, such as --at 120,80, or a page, --html FILE")
    if as_json and not pixels:
        raise ConfigurationError("--json tells of the pixels given with --at: give one, such as --at 120,80")
    target = Target(bundle, device, engine, precision, settings)
    two_stage(target.opened, "explain")
    if html is not None:
        if html.suffix.lower() not in (".html", ".htm"):
            raise OutputError(f"cannot write a page to {str(html)!r}: name it .html")
        check_writable(html)
        check_apart([html], [image, *list_files(classes, seen, contrast), *target.opened.folder.rglob("*")])
    source = load_image(Work(image, {}).source)
    for x, y in pixels:
        check_pixel(x, y, source.shape[:2])
    segmenter = target.segmenter()
    names = with_examples(None if classes is None else vocabulary_of(classes), examples)
    vocabulary = with_other(refined(segmenter.vocabulary(names), seen, template), other, contrast)
    if name is not None and name not in vocabulary.names:
        raise ConfigurationError(f"--for {name!r} is none of the {counted(len(vocabulary), 'class')}: use their names")
    if foreign_to_demo(target.opened, vocabulary):
        print(f"vocabseg: {FOREIGN}", file=sys.stderr)
    say = announcer(quiet)
    how = f"with {segmenter.bundle.manifest.name} ({segmenter.choice.key})"
    say(f"Explaining {image} with {counted(len(vocabulary), 'class')} {how}")
    with progress(quiet) as report:
        result = segmenter(source, vocabulary, report)
    found = [result.explain(x, y, name) for x, y in pixels]
    if as_json:
        content = {"file": image, "image_size": list(result.labels.shape), "model": segmenter.bundle.manifest.name}
        print(json.dumps({**content, "pixels": [each.to_json(masks) for each in found]}, indent=1, ensure_ascii=False))
    else:
        for each in found:
            _print(each, masks)
    if html is not None:
        from vocabseg.benchmarks.page.explanation import to_explanation_page

        text = to_explanation_page(result, Work(image, {}).name, segmenter.bundle.manifest.name, pixels)
        with atomic_write(html) as file:
            file.write(text.encode())
        print(html, file=sys.stderr if as_json else sys.stdout)


def _pixel(text: str) -> tuple[int, int]:
    x, comma, y = text.partition(",")
    try:
        return int(x), int(y if comma else "")
    except ValueError:
        raise ConfigurationError(f"--at {text!r} is no pixel: give its column and row, such as --at 120,80") from None


def _print(found: "Explanation", masks: int) -> None:
    """The pixel's class, its best scores, and a table of the masks with most votes."""
    label = "no class" if found.label is None else repr(found.label)
    power = (
        ""
        if found.query_power is None
        else (f"; class probability = query ^ {found.query_power:.2g} x CLIP ^ {1 - found.query_power:.2g}")
    )
    scores = ", ".join(_rated(rating) for rating in found.scores)
    print(printable(f"Pixel {found.x},{found.y} is {label}. Scores: {scores} (*: seen in training)"))
    seen = {True: ", seen in training", False: ", not seen in training", None: ""}[found.explained.seen]
    title = f"Votes for {found.explained.name!r} ({found.explained.value:.4f}{seen}){power}"
    others = found.votes[masks:]
    rows = [_row(vote) for vote in found.votes[:masks]]
    if others:
        blanks = [""] * (len(HEADER) - 3)
        rows.append([f"{len(others)} more", "", f"{sum(vote.votes for vote in others):.4f}", *blanks])
    print_rows(printable(title), HEADER, rows, sys.stdout)


def _row(vote: "Vote") -> list[str]:
    area = "dropped" if vote.area == -1 else "empty"
    if vote.box is not None:
        area = "{:.0f},{:.0f} to {:.0f},{:.0f}".format(*vote.box)
        area += f"\n{vote.area:,} px" if vote.area else ""
    if vote.shares is not None:
        area += f"\nCLIP: as {vote.shares}"
    return [
        str(vote.mask),
        f"{vote.weight:.4f}",
        f"{vote.votes:.4f}",
        _names(vote.combined) + "\n",  # a free line below each mask
        *map(_names, (vote.query, vote.clip)),
        "" if vote.no_object is None else f"{vote.no_object:.4f}",
        area,
    ]


def _names(ratings: "Sequence[Rating]") -> str:
    return "\n".join(printable(_rated(rating)) for rating in ratings) or "none"


def _rated(rating: "Rating") -> str:
    """A name, an asterisk if it was seen in training, and its number."""
    return f"{rating.name}{'*' if rating.seen else ''} {rating.value:.3f}"
