"""Everything that `vocabseg export` does: configuration and weights in, a bundle out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from vocabseg.export.bundle import check_target, export_bundle
from vocabseg.export.checkpoint.load import load_model, read_state_dict
from vocabseg.export.checkpoint.published import random_state_dict
from vocabseg.export.configuration import Configuration, load_configuration
from vocabseg.export.proposals.onnx_proposals import OnnxProposals
from vocabseg.export.proposals.region_model import load_region_model
from vocabseg.runtime.bundle.manifest import sha256_file


def export_checkpoint(
    configuration: str,
    output: str | Path,
    checkpoint: str | Path | None = None,
    clip_source: str | None = None,
    overrides: Sequence[str] = (),
    proposals: str | Path | None = None,
    min_score: float | None = None,
    **options: Any,
) -> Path:
    """Export a published checkpoint, or random weights without one, to a bundle at `output`; returns its folder.

    With the configuration "regions", or another whose proposal.backbone is "none", it is `clip_source` alone.

    Args:
        configuration: a published configuration's name, or the path of a TOML file.
        checkpoint: a file with the weights of the whole model.
        clip_source: another CLIP for the regions: a state dict's file, or an open_clip "NAME::TAG".
        overrides: "section.key=value" for entries of the configuration.
        proposals: an ONNX proposal network (`OnnxProposals`), for a configuration without one of its own.
        min_score: of that network's scores.
        options: further ones of `export_bundle`.

    Raises ConfigurationError, CheckpointError, ExportError, ImageError or OutputError; nothing is left behind then.
    """
    settings = load_configuration(configuration, overrides)
    check_target(Path(output), bool(options.get("overwrite")))
    if settings.proposal.backbone == "none":
        return _export_regions(settings, output, clip_source, proposals, min_score, options)
    if checkpoint is None:
        state_dict = random_state_dict(settings)
        provenance = {"weights": "random: they know nothing"}
    else:
        path = Path(checkpoint)
        state_dict = read_state_dict(path)
        provenance = {"weights": path.name, "weights_sha256": sha256_file(path)}
    model = load_model(state_dict, settings, clip_source)
    del state_dict
    if clip_source is not None:
        provenance |= {f"clip_{key}": value for key, value in _origin(clip_source).items()}
    if checkpoint is not None or clip_source is not None:
        options["weights_license"] = settings.weights.license
    return export_bundle(model, settings, output, Path(configuration).stem, provenance, **options)


def _export_regions(
    settings: Configuration,
    output: str | Path,
    clip_source: str | None,
    proposals: str | Path | None,
    min_score: float | None,
    options: dict[str, Any],
) -> Path:
    network = None
    if proposals is not None:
        network = OnnxProposals(proposals, min_score)
        settings = msgspec.structs.replace(settings, input=network.input_section(settings.input))
        network.dimensions(settings.input)  # what is wrong with it is told before the long work
    model = load_region_model(settings, clip_source, network)
    provenance = {"weights": "random: they know nothing"} if clip_source is None else _origin(clip_source)
    if clip_source is not None or network is not None:
        options = {**options, "weights_license": settings.weights.license}
    return export_bundle(model, settings, output, Path(output).resolve().name, provenance, **options)


def _origin(clip_source: str) -> dict[str, str]:
    """A CLIP's source without the folders of its files, and the SHA-256 of its weights where they are one."""
    parts = clip_source.split("::")
    weights = Path(parts[1] if len(parts) > 1 else parts[0])
    names = "::".join(Path(part).name if Path(part).exists() else part for part in parts)
    return {"weights": names, **({"weights_sha256": sha256_file(weights)} if weights.is_file() else {})}
