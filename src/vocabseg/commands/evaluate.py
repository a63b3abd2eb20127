"""`vocabseg evaluate`: a data set and a model in; its accuracy as tables, figures and pictures out."""

import re
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import (
    BundleArgument,
    Contrast,
    Device,
    Engine,
    Other,
    Precision,
    Quiet,
    Settings,
    Target,
    vocabulary_of,
    with_other,
)
from vocabseg.commands.packages import require
from vocabseg.commands.terminal import announcer, counting, printable
from vocabseg.runtime.errors import ConfigurationError, OutputError
from vocabseg.runtime.progress import counted

if TYPE_CHECKING:
    from vocabseg.benchmarks.accuracy.sources import Source

HELP = "Measure a model's accuracy on a data set: mIoU of seen and unseen classes, panoptic quality, mask AP."
EXAMPLE = (
    "Example: vocabseg evaluate my-bundle --dataset coco-stuff-171 --data-dir ~/datasets --output report/\n\n"
    "The built-in demo model on 500 rendered scenes: vocabseg evaluate\n\n"
    "The data sets, and which files each expects: vocabseg evaluate --list\n\n"
    "An interrupted evaluation goes on when the same command is given again."
)


class Measure(StrEnum):
    """What can be measured."""

    semantic = "semantic"
    panoptic = "panoptic"
    masks = "masks"


def evaluate(
    bundle: BundleArgument = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="The data set's name; see --list.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="The folder that holds the data sets; the world is rendered without one."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The report's folder. Default: accuracy-DATASET-MODEL-ENGINE.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Only the first so many images.")] = None,
    workers: Annotated[int, typer.Option("--workers", "-j", min=1, help="Processes, each with the model.")] = 1,
    measures: Annotated[
        list[Measure] | None,
        typer.Option("--measure", help="Measure only this; may be repeated. Default: all that the data set allows."),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="val (the default) or train.")] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", "-c", help="The data set's names in its order, with synonyms: cat|kitten, or @FILE."),
    ] = None,
    other: Other = False,
    contrast: Contrast = None,
    settings: Settings = None,
    engine: Engine = None,
    device: Device = "auto",
    precision: Precision = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Measure this checkpoint in plain PyTorch instead of a bundle.")
    ] = None,
    config: Annotated[str | None, typer.Option("--config", help="The checkpoint's configuration.")] = None,
    clip: Annotated[str | None, typer.Option("--clip", help="Other CLIP for the regions, as for export.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the data sets with the files they expect.")] = False,
    quiet: Quiet = False,
) -> None:
    from vocabseg.benchmarks.accuracy.evaluate import evaluate as measure_accuracy
    from vocabseg.benchmarks.accuracy.measure import renamed
    from vocabseg.benchmarks.accuracy.measure import vocabulary_of as dataset_vocabulary
    from vocabseg.benchmarks.accuracy.report import summary_lines, write_report
    from vocabseg.benchmarks.accuracy.sources import BundleSource
    from vocabseg.benchmarks.datasets.registry import NAMES, describe, get_dataset
    from vocabseg.benchmarks.scenes.files import SCENES, rendered_world
    from vocabseg.runtime.files import check_writable

    if list_:
        print("\n\n".join(describe(name) for name in NAMES))
        return
    if dataset is None:
        if bundle is not None or reference is not None or data_dir is not None:
            raise ConfigurationError("--dataset is missing: give one of " + ", ".join(NAMES))
        dataset = "world"
    if data_dir is None and dataset != "world":
        raise ConfigurationError(f"--data-dir is missing: give the folder that holds {dataset} (--list shows how)")
    say = announcer(quiet)
    source = _source(Target(bundle, device, engine, precision, settings), reference, config, clip)
    identity = source.identity  # a model that cannot be used is an error before anything else
    if data_dir is None:
        data_dir = rendered_world(limit or SCENES, say)
    data = get_dataset(dataset, data_dir, split)
    if classes is not None or other or contrast is not None:
        if not isinstance(source, BundleSource):
            raise ConfigurationError("--classes, --other and --contrast go with a bundle, not with --reference")
        own = dataset_vocabulary(data) if classes is None else renamed(data, vocabulary_of(classes))
        source = replace(source, vocabulary=with_other(own, other, contrast))
        identity = source.identity
    folder = output or Path(re.sub(r"[^\w.-]+", "_", f"accuracy-{dataset}-{identity['model']}-{identity['engine']}"))
    _check_same(folder, dataset, identity)
    check_writable(folder / "accuracy.json") if folder.is_dir() else check_writable(folder)
    count = min(len(data), limit or len(data))
    model = f"{identity['model']} ({identity['engine']})"
    say(f"Evaluating {model} on {counted(count, 'image')} of {dataset}, {counted(len(data.classes), 'class')}")
    with counting(quiet, "opening the model") as step:
        evaluation = measure_accuracy(
            source,
            data,
            folder,
            limit=limit,
            workers=workers,
            measures=[str(measure) for measure in measures or list(Measure)],
            progress=step,
            notify=say,
        )
    files = write_report(evaluation, folder, say)
    broken = evaluation.accuracy.broken
    if broken:
        were, first = "was" if len(broken) == 1 else "were", printable(next(iter(broken.values())))
        print(f"{counted(len(broken), 'image')} {were} left out, such as: {first}", file=sys.stderr)
    for line in summary_lines(evaluation.accuracy):
        say(line)
    for path in files:
        print(path)


def _check_same(folder: Path, dataset: str, identity: dict[str, str]) -> None:
    """Raise OutputError if the folder's report is of something else, which would be lost."""
    from vocabseg.benchmarks.accuracy.report import read_source

    earlier = read_source(folder)
    if earlier is None or earlier == (dataset, identity):
        return
    was, now = (f"{kind.get('model')} ({kind.get('engine')})" for kind in (earlier[1], identity))
    other = was if was != now else f"{was} with other settings"
    if earlier[0] != dataset:
        other = f"{was} on {earlier[0]}"
    raise OutputError(f"{folder} holds the report of {other}: choose another --output, or remove it")


def _source(target: Target, reference: Path | None, config: str | None, clip: str | None) -> "Source":
    from vocabseg.benchmarks.accuracy.sources import BundleSource, ReferenceSource
    from vocabseg.runtime.bundle.folder import demo_folder

    settings = tuple(target.settings or ())
    if reference is None:
        if config is not None or clip is not None:
            raise ConfigurationError("--config and --clip go with --reference: a bundle has its own")
        return BundleSource(target.bundle or demo_folder(), settings, target.engine, target.device, target.precision)
    if target.bundle is not None:
        raise ConfigurationError("give either a bundle's folder, or --reference CHECKPOINT with --config NAME")
    if config is None:
        raise ConfigurationError("--reference needs --config NAME, the checkpoint's configuration")
    if target.engine is not None or target.precision is not None:
        raise ConfigurationError("--engine and --precision go with a bundle: the reference is PyTorch in float32")
    require(("torch", "open_clip"), "the reference", "export")
    if not reference.is_file():
        raise ConfigurationError(f"there is no checkpoint {reference}: give the path of its file")
    return ReferenceSource(reference, config, settings, clip)
