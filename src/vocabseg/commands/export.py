"""`vocabseg export`: a PyTorch checkpoint in, a bundle of ONNX graphs out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import Quiet, list_files, vocabulary_of
from vocabseg.commands.packages import require
from vocabseg.commands.terminal import progress
from vocabseg.runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from vocabseg.runtime.text.vocabulary import Vocabulary

HELP = "Turn a published checkpoint into a bundle: ONNX graphs, tokenizer and a manifest with the measured parity."
EXAMPLE = (
    "Example: vocabseg export --config zsseg-r101c-vitb16-learned --checkpoint model_final.pth --output my-bundle\n\n"
    "The configurations: vocabseg export --list\n\n"
    "Somebody's ONNX proposal network and a CLIP: vocabseg export --proposals network.onnx --clip ViT-B-16::openai "
    "--output my-bundle\n\n"
    "A CLIP alone, for masks of your own: vocabseg export --config regions --clip ViT-B-16::openai --output my-bundle"
)
EXPORTER = ("torch", "open_clip", "onnx", "onnxscript")


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
        typer.Option(
            "--clip",
            help="Other CLIP for the regions: a state dict's file, or an open_clip NAME::TAG or NAME::FILE, with "
            "::TOKENIZER behind it where --list-clips says so. "
            "Files do not tell their activation: --set clip.activation=gelu or quick_gelu.",
        ),
    ] = None,
    proposals: Annotated[
        Path | None,
        typer.Option(
            "--proposals",
            help="Somebody's ONNX proposal network: an image in, mask_logits and perhaps scores out "
            "(docs/proposals.md). Its settings: --config, else NETWORK.toml beside it, else the configuration regions.",
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", min=0, max=1, help="With --proposals: leave out those whose score is not above."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override an entry of the configuration: section.key=value.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="The vocabulary the bundle declares: names, or @FILE.")
    ] = None,
    seen: Annotated[
        str | None, typer.Option("--seen", help="Which of --classes were seen in training, in the same form.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset of the graphs.", min=18, max=24)] = 21,
    fused_attention: Annotated[
        bool, typer.Option("--fused-attention", help="Use ONNX's Attention operator (opset 23).")
    ] = False,
    sample_image: Annotated[
        Path | None, typer.Option("--sample-image", help="The photo on which the graphs are checked.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the configurations and stop.")] = False,
    list_clips: Annotated[
        bool, typer.Option("--list-clips", help="List open_clip's models, which of them --clip takes, and stop.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    require(EXPORTER, "exporting", "export,cpu")
    from vocabseg.export.configuration import REGIONS, list_configurations, load_configuration
    from vocabseg.runtime.files import check_apart

    if list_:
        for name in list_configurations():
            print(name)
        return
    if list_clips:
        from vocabseg.export.model.open_clip_models import known_models

        answers = known_models()
        for name, answer in answers.items():
            print(f"{name:<{max(map(len, answers))}}  {answer}")
        return
    if proposals is not None and config is None:
        beside = proposals.with_suffix(".toml")
        config = str(beside.absolute()) if beside.is_file() else REGIONS
    if config is None or output is None:
        raise ConfigurationError("--config and --output are needed (see `vocabseg export --list` and --help)")
    # An unknown name or key is an error before anything is announced.
    alone = load_configuration(config, settings or []).proposal.backbone == "none"
    _check_weights(config, alone, checkpoint, random, clip, proposals, min_score)
    lists = list_files(classes, seen)
    given = [path for path in (checkpoint, sample_image, clip, config, proposals, *lists) if path is not None]
    check_apart([output], [path for path in given if Path(path).exists()])
    vocabulary = _vocabulary(classes, seen)
    if not quiet:
        weights = checkpoint.name if checkpoint else clip if alone and clip else "random weights"
        if proposals is not None:
            weights = f"{proposals.name} and {weights}"
        print(f"Exporting {weights} as {config} to {output}", file=sys.stderr)
    from vocabseg.export.pipeline import export_checkpoint

    with progress(quiet) as report:
        folder = export_checkpoint(
            config,
            output,
            checkpoint=checkpoint,
            clip_source=clip,
            overrides=settings or [],
            proposals=proposals,
            min_score=min_score,
            vocabulary=vocabulary,
            opset=opset,
            fused_attention=fused_attention,
            sample_image=sample_image,
            overwrite=overwrite,
            progress=report,
        )
    _summary(folder)


def _check_weights(
    config: str,
    alone: bool,
    checkpoint: Path | None,
    random: bool,
    clip: str | None,
    proposals: Path | None,
    min_score: float | None,
) -> None:
    if min_score is not None and proposals is None:
        raise ConfigurationError("--min-score goes with --proposals: it is for the scores of that network")
    if not alone:
        if proposals is not None:
            raise ConfigurationError(
                f"{config} has a proposal network of its own: leave out --proposals, or --set proposal.backbone=none"
            )
        if random == (checkpoint is not None):
            raise ConfigurationError("give either --checkpoint FILE or --random")
    elif checkpoint is not None:
        raise ConfigurationError(f"{config} has CLIP's weights alone: give them with --clip, not --checkpoint")
    elif random == (clip is not None):
        raise ConfigurationError("give either --clip FILE or NAME::TAG, or --random")


def _vocabulary(classes: str | None, seen: str | None) -> "Vocabulary | None":
    from vocabseg.runtime.text.vocabulary import Vocabulary

    if classes is None:
        if seen is not None:
            raise ConfigurationError("--seen goes with --classes: it says which of them were seen in training")
        return None
    given = vocabulary_of(classes)
    if any(given.examples):
        raise ConfigurationError(f"--classes {classes!r} has example images, which no bundle can hold: name them")
    return Vocabulary(given.written, None if seen is None else vocabulary_of(seen).names)


def _summary(folder: Path) -> None:
    from vocabseg.runtime.bundle.folder import open_bundle

    manifest = open_bundle(folder, verify=False).manifest
    for name, graph in manifest.graphs.items():
        size = (graph.bytes + sum(record.bytes for record in graph.external)) / 1e6
        print(f"  {name:<20} {size:7.1f} MB  opset {graph.opset}")
    found = manifest.parity["graphs"].values()
    worst = min(figures["cosine"] for engines in found for outputs in engines.values() for figures in outputs.values())
    limit = manifest.parity["limits"]["cosine"]
    if manifest.weights_license is not None:
        print(f"  the weights are under {manifest.weights_license}")
    if manifest.masks == "given":
        print("  no proposal network: masks are given with every image (vocabseg segment --masks)")
    print(f"  parity with PyTorch holds: the graphs' worst cosine is {worst:.9g}, the limit {limit:g}")
    print(folder)
