"""`vocabseg export`: a PyTorch checkpoint in, a bundle of ONNX graphs out."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from vocabseg.commands.packages import require
from vocabseg.commands.progress import progress
from vocabseg.runtime.errors import ConfigurationError

HELP = "Turn a published checkpoint into a bundle: ONNX graphs, tokenizer and a manifest with the measured parity."
EXAMPLE = (
    "Example: vocabseg export --config zsseg-r101c-vitb16-learned --checkpoint model_final.pth --output my-bundle\n\n"
    "The configurations: vocabseg export --list"
)
EXPORTER = ("torch", "open_clip", "onnx", "onnxscript")
RANDOM_CONFIGURATION = "zsseg-r50-vitb16-vild"


def export(
    config: Annotated[
        str | None, typer.Option("--config", help="A configuration's name, or a TOML file of one's own.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The bundle's folder, which is made.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Published checkpoint (.pth, .pt or .safetensors).")
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Random weights instead of a checkpoint: right in size, knowing nothing.")
    ] = False,
    clip: Annotated[
        str | None,
        typer.Option("--clip", help="Other CLIP for the regions: a state dict's file, or an open_clip NAME::TAG."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override an entry of the configuration: section.key=value.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="The vocabulary the bundle declares: names, or @FILE.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset of the graphs.")] = 21,
    fused_attention: Annotated[
        bool, typer.Option("--fused-attention", help="Use ONNX's Attention operator (opset 23).")
    ] = False,
    sample_image: Annotated[
        Path | None, typer.Option("--sample-image", help="The photo on which the graphs are checked.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the configurations and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    require(EXPORTER, "exporting", "export,cpu")
    from vocabseg.export.config import list_configurations, load_configuration

    if list_:
        for name in list_configurations():
            print(name)
        return
    if config is None or output is None:
        raise ConfigurationError("--config and --output are needed (see `vocabseg export --list` and --help)")
    if random == (checkpoint is not None):
        raise ConfigurationError("give either --checkpoint FILE or --random")
    load_configuration(config, settings or [])  # an unknown name or key is told before anything is announced
    if not quiet:
        weights = "random weights" if checkpoint is None else checkpoint.name
        print(f"Exporting {weights} as {config} to {output}", file=sys.stderr)
    folder = _export(
        config,
        output,
        checkpoint,
        clip,
        settings or [],
        classes,
        opset,
        fused_attention,
        sample_image,
        overwrite,
        quiet,
    )
    _summary(folder)


def random_bundle(quiet: bool = False) -> Path:
    """A bundle with random weights in the user's cache folder, exported on first use."""
    from platformdirs import user_cache_path

    from vocabseg.runtime.text_cache import cache_folder

    folder = (cache_folder() or user_cache_path("vocabseg")) / f"random-{RANDOM_CONFIGURATION}"
    print(
        "No --bundle was given: using a model with RANDOM WEIGHTS. It shows that everything runs; "
        "it knows nothing, and its classes mean nothing.",
        file=sys.stderr,
    )
    if not (folder / "manifest.json").is_file():
        require(EXPORTER, "exporting", "export,cpu")
        print(f"Exporting it once to {folder} (a minute or two)", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _export(RANDOM_CONFIGURATION, folder, None, None, [], None, 21, False, None, True, quiet)
    return folder


def _export(
    config: str,
    output: Path,
    checkpoint: Path | None,
    clip: str | None,
    settings: list[str],
    classes: str | None,
    opset: int,
    fused_attention: bool,
    sample_image: Path | None,
    overwrite: bool,
    quiet: bool,
) -> Path:
    from vocabseg.export.pipeline import export_checkpoint
    from vocabseg.runtime.vocabulary import Vocabulary

    with progress(quiet) as report:
        return export_checkpoint(
            config,
            output,
            checkpoint=checkpoint,
            clip_source=clip,
            overrides=settings,
            vocabulary=None if classes is None else list(Vocabulary.of(classes).names),
            opset=opset,
            fused_attention=fused_attention,
            sample_image=sample_image,
            overwrite=overwrite,
            progress=report,
        )


def _summary(folder: Path) -> None:
    from vocabseg.runtime.bundle import open_bundle

    manifest = open_bundle(folder, verify=False).manifest
    for name, graph in manifest.graphs.items():
        size = (graph.bytes + sum(record.bytes for record in graph.external)) / 1e6
        print(f"  {name:<20} {size:7.1f} MB  opset {graph.opset}")
    print(folder)
