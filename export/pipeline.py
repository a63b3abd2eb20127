"""Everything that `vocabseg export` does: configuration and weights in, a bundle out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vocabseg.export.bundle import check_target, export_bundle
from vocabseg.export.checkpoint.load import load_model, read_state_dict
from vocabseg.export.checkpoint.published import random_state_dict
from vocabseg.export.configuration import load_configuration
from vocabseg.runtime.bundle.manifest import sha256_file


def export_checkpoint(
    configuration: str,
    output: str | Path,
    checkpoint: str | Path | None = None,
    clip_source: str | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Path:
    """Export a published checkpoint, or random weights without one, to a bundle at `output`; returns its folder.

    Args:
        configuration: a published configuration's name, or the path of a TOML file.
        checkpoint: a file with the weights of the whole model.
        clip_source: another CLIP for the regions: a state dict's file, or an open_clip "NAME::TAG".
        overrides: "section.key=value" for entries of the configuration.
        options: further ones of `export_bundle`.

    Raises ConfigurationError, CheckpointError, ImageError or OutputError; nothing is left behind then.
    """
    settings = load_configuration(configuration, overrides)
    check_target(Path(output), bool(options.get("overwrite")))
    if checkpoint is None:
        state_dict = random_state_dict(settings)
        provenance = {"weights": "random: they know nothing"}
    else:
        path = Path(checkpoint)
        state_dict = read_state_dict(path)
        provenance = {"weights": path.name, "weights_sha256": sha256_file(path)}
    model = load_model(state_dict, settings, clip_source)
    del state_dict
    license_ = None if checkpoint is None else settings.weights.license
    return export_bundle(
        model, settings, output, Path(configuration).stem, provenance, weights_license=license_, **options
    )
