"""`vocabseg triton`: a bundle in; a model repository for Triton Inference Server out."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from vocabseg.commands.options import BundleArgument, Precision, Settings, Target, with_groups
from vocabseg.commands.served import ServedModel
from vocabseg.runtime.errors import ConfigurationError

HELP = "Write a Triton model repository that serves a bundle, with the container line that starts it."
EXAMPLE = (
    "Example: vocabseg triton my-bundle --output models --gpus 0,1\n\n"
    "On CPUs, one process for each 4 cores: vocabseg triton my-bundle --output models --threads 4 --instances 8\n\n"
    "To serve here and now: vocabseg serve my-bundle"
)


@with_groups
def triton(
    served: ServedModel,
    bundle: BundleArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The repository's folder.")] = Path("models"),
    gpus: Annotated[str, typer.Option(help="GPUs to run on, separated by commas. Default: the CPU.")] = "",
    settings: Settings = None,
    engine: Annotated[str | None, typer.Option(help="As for segment. Default: the fastest installed there.")] = None,
    precision: Precision = None,
) -> None:
    from vocabseg.serving.model_repository.writer import check_target, write_repository

    named = served.named()
    opened = Target(bundle, settings=settings).opened
    opened.require_proposals()
    serving = served.serving(gpus, engine, precision)
    if serving.gpus and opened.manifest.per_pixel:
        raise ConfigurationError(
            f"{opened.manifest.name} is a per-pixel model, which runs on a CPU only: leave out --gpus"
        )
    check_target(output, opened)
    where = f"GPU {gpus}" if gpus else f"{serving.instances} x {serving.threads} cores"
    print(f"Writing {opened.manifest.name} as the Triton model {serving.name} for {where}", file=sys.stderr)
    write_repository(opened, output, serving, named)
    print(f"How to start it: {output / 'README.md'}", file=sys.stderr)
    print(output)
