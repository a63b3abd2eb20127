"""What the published code writes for a configuration: names and shapes of a checkpoint, and random weights in them."""

import torch
from torch import Tensor

from vocabseg.export.checkpoint.load import QUERY, REGION, shapes_of
from vocabseg.export.checkpoint.random_weights import SIGNAL_TOKENS, fill
from vocabseg.export.configuration import Configuration
from vocabseg.export.model.maskformer import proposal_sizes
from vocabseg.export.model.pixel_network import network_on_meta
from vocabseg.runtime.errors import CheckpointError

PROMPT_LENGTH = 16  # of a published learned prompt: vectors before the class name, none behind it
MASK_PROMPT_DEPTH = 3
CLASSES, VOC_CLASSES, OVSEG_CLASSES = 156, 15, 171


def random_state_dict(configuration: Configuration) -> dict[str, Tensor]:
    """Random weights for a configuration in its published sizes and layout, the same every time."""
    return {key: torch.from_numpy(array) for key, array in fill(published_shapes(configuration)).items()}


def published_shapes(configuration: Configuration) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the checkpoint that the published code writes for a configuration.

    CLIP's sizes are those of open_clip's model of that name; raises CheckpointError for an unknown one.
    """
    query = _clip_shapes(configuration.clip.model)
    sizes = proposal_sizes(configuration.proposal.backbone, query["text_projection"][1])
    shapes = shapes_of(network_on_meta(sizes, configuration.proposal.per_pixel))
    shapes["criterion.empty_weight"] = (1 + _classes(configuration.name),)
    if configuration.clip.mask_prompts:
        patches, width = query["visual.positional_embedding"]
        query["visual.mask_embedding"] = (MASK_PROMPT_DEPTH, patches - 1, width)
    adapters = {QUERY: (query, configuration.prompt.query)}
    if configuration.separate_region:
        adapters[REGION] = (_clip_shapes(configuration.region_model), configuration.region_prompt)
    for prefix, (clip, prompt) in adapters.items():
        width = clip["token_embedding.weight"][1]
        if not configuration.proposal.per_pixel:
            shapes[f"{prefix}non_object_embedding"] = (1, clip["text_projection"][1])
        shapes |= {f"{prefix}{name}": (1, 3, 1, 1) for name in ("pixel_mean", "pixel_std")}
        shapes |= {f"{prefix}clip_model.{key}": shape for key, shape in clip.items()}
        if prompt == "learned":
            shapes[f"{prefix}prompt_learner.prefix_prompt"] = (PROMPT_LENGTH, width)
            shapes |= {f"{prefix}prompt_learner.{signal}": (1, width) for signal in SIGNAL_TOKENS}
    return shapes


def _clip_shapes(name: str) -> dict[str, tuple[int, ...]]:
    import open_clip

    sizes = open_clip.get_model_config(name.replace("/", "-"))
    if sizes is None:
        raise CheckpointError(f"no sizes are known for the CLIP model {name!r}: use a name of open_clip.list_models()")
    with torch.device("meta"):
        return shapes_of(open_clip.model.CLIP(sizes["embed_dim"], sizes["vision_cfg"], sizes["text_cfg"]))


def _classes(name: str) -> int:
    """Of the published training set, by a configuration's name; they only size the training loss."""
    return OVSEG_CLASSES if name.startswith("ovseg-") else VOC_CLASSES if name.endswith("-voc15") else CLASSES
