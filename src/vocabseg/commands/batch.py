"""`vocabseg batch`: folders, globs, lists and tars in; label maps and run lengths in shards out, on Ray."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vocabseg.commands.options import (
    FOREIGN,
    BundleOption,
    Classes,
    Contrast,
    Engine,
    Examples,
    Other,
    Precision,
    Quiet,
    Settings,
    Target,
    foreign_to_demo,
    vocabulary_of,
    with_examples,
    with_other,
)
from vocabseg.commands.packages import require
from vocabseg.commands.terminal import FAILED, announcer, counting
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.progress import counted

HELP = "Segment whole data sets on all cores, all GPUs or a Ray cluster; resumes where it was interrupted."
EXAMPLE = (
    "Example: vocabseg batch photos/ --classes 'cat, grass, sky' --bundle my-bundle --output segmented/\n\n"
    "Several inputs: vocabseg batch 'raw/**/*.jpg' list.csv shards/*.tar -c @names.txt -b my-bundle -o segmented/\n\n"
    "On a cluster, with folders that all its machines share: --ray-address auto\n\n"
    "The same command again resumes an interrupted run, and does nothing when all is done.\n\n"
    "Exit code 3: every image is broken. Files that are left out of the inputs are listed in left_out.csv."
)


class Write(StrEnum):
    """What can be written of every image."""

    labels = "labels"
    rle = "rle"


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Folders, globs, .csv or .parquet lists, WebDataset .tar files, images.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The output folder: new, or of an earlier run.")],
    classes: Classes = None,
    other: Other = False,
    contrast: Contrast = None,
    examples: Examples = None,
    bundle: BundleOption = None,
    write: Annotated[
        list[Write] | None,
        typer.Option("--write", "-w", help="labels (PNG) or rle (Parquet); may be repeated. Default: both."),
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", help="A list's column of paths. Default: path, image, file, ...")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id-column", help="A list's column of ids. Default: id, else the path.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=1, help="Processes. Default: one per GPU, or per 4 cores.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of each worker on a CPU.")] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="A Ray cluster, such as auto or ray://host:10001.")
    ] = None,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Images that are committed at a time.")] = 64,
    retry_broken: Annotated[
        bool, typer.Option("--retry-broken", help="Make the shards that have broken images again.")
    ] = False,
    settings: Settings = None,
    engine: Engine = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; cuda gives every worker its own GPU.")] = "auto",
    precision: Precision = None,
    quiet: Quiet = False,
) -> None:
    require(("ray", "pyarrow", "pandas", "matplotlib"), "vocabseg batch", "batch")
    from vocabseg.batch.coordinator import run_batch
    from vocabseg.batch.inputs.find import find_items
    from vocabseg.batch.job import KINDS, Job
    from vocabseg.batch.ray_cluster import Workers
    from vocabseg.batch.summary import failure_lines, frequencies, summary_lines, write_summary
    from vocabseg.runtime.text.vocabulary import Vocabulary

    if device.startswith("cuda:"):
        raise ConfigurationError(f"--device {device}: every worker is given a GPU of its own; use --device cuda")
    target = Target(bundle, device, engine, precision, settings)
    target.opened.require_proposals()
    manifest = target.opened.manifest
    names = with_examples(None if classes is None else vocabulary_of(classes), examples)
    if names is not None:
        vocabulary = names
    elif manifest.vocabulary is not None:
        vocabulary = Vocabulary(manifest.vocabulary, manifest.seen)
    else:
        raise ConfigurationError(f"bundle {target.opened.folder} declares no vocabulary: give --classes")
    job = Job(
        output.absolute(),
        with_other(vocabulary, other, contrast),
        None if bundle is None else bundle.absolute(),
        tuple(settings or ()),
        engine,
        device,
        precision,
        write=tuple(dict.fromkeys(str(kind) for kind in write or KINDS)),
    )
    if foreign_to_demo(target.opened, vocabulary):
        print(f"vocabseg: {FOREIGN}", file=sys.stderr)
    say = announcer(quiet)
    say(f"Segmenting {', '.join(inputs)} into {counted(len(vocabulary), 'class')} with {manifest.name}")
    with counting(quiet, "planning", remaining=False) as report:
        outcome = run_batch(
            target.opened,
            job,
            lambda left_out: find_items(inputs, column, id_column, left_out, output),
            shard_size,
            Workers(workers, threads, ray_address),
            retry_broken,
            report,
            say,
        )
    files = write_summary(output, fresh=outcome.done + outcome.broken > 0)
    found = frequencies(output)
    for line in summary_lines(found, output, outcome):
        say(line)
    for line in failure_lines(found, output):  # even where nothing else is said
        print(f"vocabseg: {line}", file=sys.stderr)
    for path in files:
        print(path)
    if not found.images:
        raise typer.Exit(FAILED)
