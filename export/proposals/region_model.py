"""A CLIP alone: it classifies the regions of masks that are given, or found by somebody's network."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from vocabseg.export.checkpoint.load import QUERY, choose_mask_prompts, load_clip_source
from vocabseg.export.checkpoint.published import random_state_dict
from vocabseg.export.configuration import Configuration, ProposalSection
from vocabseg.export.model.clip import ClipModel, build_clip
from vocabseg.export.proposals.onnx_proposals import OnnxProposals


@dataclass(frozen=True)
class RegionModel:
    """A model without queries: both sides are the same CLIP. Without `proposals`, masks come with every image."""

    clip: ClipModel
    proposals: OnnxProposals | None
    query_prompt: None = None
    region_prompt: None = None
    separate_region: bool = False

    @property
    def query_clip(self) -> ClipModel:
        """The CLIP whose text encoder embeds class names."""
        return self.clip

    @property
    def region_clip(self) -> ClipModel:
        """The CLIP that embeds regions."""
        return self.clip


def load_region_model(
    configuration: Configuration, clip_source: str | Path | None, proposals: OnnxProposals | None
) -> RegionModel:
    """The CLIP in `clip_source` (see `load_clip_source`), or one of random weights, the same every time.

    Raises CheckpointError or ConfigurationError for a CLIP that cannot be used.
    """
    if clip_source is not None:
        clip = load_clip_source(clip_source, configuration.clip.activation)
        choose_mask_prompts(clip, configuration)
        return RegionModel(clip, proposals)
    published = msgspec.structs.replace(configuration, proposal=ProposalSection(backbone="r50"))
    prefix = f"{QUERY}clip_model."
    drawn = random_state_dict(published)
    tensors = {key.removeprefix(prefix): value for key, value in drawn.items() if key.startswith(prefix)}
    return RegionModel(build_clip(tensors, configuration.clip.activation != "gelu"), proposals)
