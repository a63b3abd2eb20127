"""Everything that `vocabseg export` does: configuration and weights in, a bundle out."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vocabseg.export.bundle import export_bundle
from vocabseg.export.checkpoint.load import load_model, random_state_dict, read_state_dict
from vocabseg.export.configuration import load_configuration
from vocabseg.runtime.bundle.manifest import sha256_file
from vocabseg.runtime.text.vocabulary import Vocabulary

Progress = Callable[[str, int, int], None]


def export_checkpoint(
    configuration: str,
    output: str | Path,
    checkpoint: str | Path | None = None,
    clip_source: str | None = None,
    overrides: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
    opset: int = 21,
    fused_attention: bool = False,
    sample_image: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Export a published checkpoint, or random weights without one, to a bundle at `output`; returns its folder.

    Args:
        configuration: a published configuration's name, or the path of a TOML file.
        checkpoint: a file with the weights of the whole model.
        clip_source: another CLIP for the regions: a state dict's file, or an open_clip "NAME::TAG".
        overrides: "section.key=value" for entries of the configuration.
        vocabulary: the classes the bundle declares as its own, and which of them were seen in training.
        opset: ONNX opset of the graphs; `fused_attention` needs 23.
        sample_image: a photo on which the graphs are compared with their modules.
        overwrite: replace a bundle that is there already.
        progress: called as progress(what, done, total).

    Raises ConfigurationError, CheckpointError, ImageError or OutputError; nothing is left behind then.
    """
    settings = load_configuration(configuration, list(overrides))
    if checkpoint is None:
        state_dict = random_state_dict(settings)
        provenance = {"weights": "random: they know nothing"}
    else:
        path = Path(checkpoint)
        state_dict = read_state_dict(path)
        provenance = {"weights": path.name, "weights_sha256": sha256_file(path)}
    model = load_model(state_dict, settings, clip_source)
    del state_dict
    return export_bundle(
        model,
        settings,
        output,
        name=Path(configuration).stem,
        provenance=provenance,
        opset=opset,
        fused_attention=fused_attention,
        sample_image=sample_image,
        overwrite=overwrite,
        progress=progress,
        vocabulary=vocabulary,
    )
