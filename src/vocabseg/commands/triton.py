"""`vocabseg triton`: a bundle in; a model repository for Triton Inference Server out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import (
    Delay,
    MaxBatch,
    ModelName,
    Precision,
    Queue,
    RequestLimits,
    Settings,
    Threads,
    Vocabularies,
)
from vocabseg.runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from vocabseg.runtime.text.vocabulary import Vocabulary
    from vocabseg.serving.configuration import Serving
    from vocabseg.serving.protocol import Limits

HELP = "Write a Triton model repository that serves a bundle, with the container line that starts it."
EXAMPLE = (
    "Example: vocabseg triton my-bundle --output models --gpus 0,1\n\n"
    "On CPUs, one process for each 4 cores: vocabseg triton my-bundle --output models --threads 4 --instances 8\n\n"
    "To serve here and now: vocabseg serve my-bundle"
)


def triton(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle's folder; without it, the built-in demo model.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The repository's folder.")] = Path("models"),
    name: ModelName = "vocabseg",
    vocabularies: Vocabularies = None,
    gpus: Annotated[str, typer.Option(help="GPUs to run on, separated by commas. Default: the CPU.")] = "",
    instances: Annotated[
        int, typer.Option(min=0, help="Processes (per GPU). Default: 1 per GPU; as many as fit the CPU's cores.")
    ] = 0,
    threads: Threads = 0,
    max_batch: MaxBatch = 8,
    delay: Delay = 2.0,
    queue: Queue = 128,
    limits: RequestLimits = None,
    settings: Settings = None,
    engine: Annotated[str | None, typer.Option(help="As for segment. Default: the fastest installed there.")] = None,
    precision: Precision = None,
) -> None:
    from vocabseg.runtime.bundle.settings import open_adjusted
    from vocabseg.serving.repository import check_target, write_repository

    named = named_vocabularies(vocabularies or [])
    opened = open_adjusted(bundle, settings or [])
    serving = serving_of(
        name, gpus, instances, threads, max_batch, delay, queue, limits or [], engine, precision,
    )  # fmt: skip
    check_target(output)
    where = f"GPU {gpus}" if gpus else f"{serving.instances} x {serving.threads} cores"
    print(f"Writing {opened.manifest.name} as the Triton model {name} for {where}", file=sys.stderr)
    write_repository(opened, output, serving, named)
    print(f"How to start it: {output / 'README.md'}", file=sys.stderr)
    print(output)


def serving_of(
    name: str,
    gpus: str,
    instances: int,
    threads: int,
    max_batch: int,
    delay: float,
    queue: int,
    limits: list[str],
    engine: str | None,
    precision: str | None,
) -> "Serving":
    """The settings behind the options; raises ConfigurationError for values that cannot be used."""
    from vocabseg.runtime.threads import usable_cpus
    from vocabseg.serving.configuration import Serving

    parts = [part.strip() for part in gpus.split(",") if part.strip()]
    if any(not part.isdecimal() for part in parts):
        raise ConfigurationError(f"--gpus {gpus!r}: give numbers of GPUs, such as 0,1")
    cores = usable_cpus()
    used = threads or min(4, cores)
    return Serving(
        name=name,
        gpus=tuple(int(part) for part in parts),
        instances=instances or (1 if parts else max(1, cores // used)),
        threads=used,
        max_batch=max_batch,
        delay=delay / 1000,
        queue=queue,
        engine=engine,
        precision=precision,
        limits=_limits(limits),
    )


def named_vocabularies(given: list[str]) -> "dict[str, Vocabulary]":
    """Vocabularies by name; raises ConfigurationError for an entry without a name."""
    from vocabseg.runtime.text.vocabulary import Vocabulary

    found = {}
    for entry in given:
        name, equals, names = entry.partition("=")
        if not equals or not name.strip():
            raise ConfigurationError(f"--vocabulary {entry!r}: write NAME=cat,grass,sky or NAME=@FILE")
        found[name.strip()] = Vocabulary.of(names)
    return found


def _limits(given: list[str]) -> "Limits":
    from vocabseg.serving.protocol import Limits

    known = ", ".join(Limits.__struct_fields__)
    values = {}
    for entry in given:
        name, _, value = entry.partition("=")
        if name not in Limits.__struct_fields__ or not value.isdecimal() or int(value) < 1:
            raise ConfigurationError(f"--limit {entry!r}: write one of {known}, then = and a whole number from 1 on")
        values[name] = int(value)
    return Limits(**values)
