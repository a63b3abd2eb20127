"""Published checkpoints -> modules. Loading is strict, and sizes are read off the tensors."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vocabseg.export.checkpoint.file import bare_name, read_state_dict
from vocabseg.export.checkpoint.random_weights import SIGNAL_TOKENS
from vocabseg.export.configuration import Configuration
from vocabseg.export.model.clip import MASK_PROMPTS, ClipModel, build_clip, is_openai_archive, list_problems
from vocabseg.export.model.maskformer import proposal_sizes, read_proposal_sizes
from vocabseg.export.model.open_clip_models import open_clip_model
from vocabseg.export.model.pixel_network import Network, network_on_meta, read_pixel_sizes
from vocabseg.export.model.resnet import ResNetSizes
from vocabseg.export.model.swin import SwinSizes, check_swin
from vocabseg.runtime.errors import CheckpointError

QUERY, REGION = "clip_adapter.", "_region_clip_adapter."


@dataclass(frozen=True)
class LearnedPrompt:
    """Learned vectors before and behind the class name: `prefix` (P, width) and `suffix` (S, width), float32.

    The sequence is [start] prefix name suffix ["."] [end]. Start, ".", end and padding are rows of the token embedding,
    of which a checkpoint holds copies; if a copy differs, the token embedding is used and a warning says so.
    """

    prefix: Tensor
    suffix: Tensor


@dataclass(frozen=True)
class Model:
    """A loaded model, float32, in evaluation mode; without a separate region adapter both sides are the same objects.

    `non_object_embedding` is the query side's (1, D), not normalised; zeros for a per-pixel model, which has none.
    """

    proposal: Network
    query_clip: ClipModel
    region_clip: ClipModel
    query_prompt: LearnedPrompt | None
    region_prompt: LearnedPrompt | None
    non_object_embedding: Tensor

    @property
    def separate_region(self) -> bool:
        """Whether regions have a CLIP of their own."""
        return self.region_clip is not self.query_clip


def normalise_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One spelling for the pixel decoder's keys, without those that inference does not need.

    Left out: the training loss (`criterion.*`), `num_batches_tracked`, and the top-level `pixel_mean` and `pixel_std`,
    which the configuration holds.
    """
    head, decoder, predictor = "sem_seg_head.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    result = {}
    for key, value in state_dict.items():
        name = bare_name(key)
        if name.startswith("criterion.") or name in ("pixel_mean", "pixel_std") or name.endswith("num_batches_tracked"):
            continue
        if name.startswith(head) and not name.startswith((decoder, predictor)):
            name = decoder + name.removeprefix(head)
        result[name] = value
    return result


def load_model(
    state_dict: Mapping[str, Tensor], configuration: Configuration, clip_source: str | Path | None = None
) -> Model:
    """Build and fill every module from a checkpoint's tensors, in any floating type.

    `clip_source` (see load_clip_source) replaces the CLIP that embeds regions; for a checkpoint without CLIP tensors it
    is the CLIP of both sides. Raises CheckpointError for missing, extra and misshapen keys, and if the configuration
    does not describe the checkpoint.
    """
    tensors = normalise_keys(state_dict)
    query, region = _part(tensors, QUERY), _part(tensors, REGION)
    adapters = (QUERY, REGION)
    proposal = _load_proposal({key: tensors[key] for key in tensors if not key.startswith(adapters)}, configuration)
    source = None if clip_source is None else load_clip_source(clip_source, configuration.clip.activation)
    if source is not None and not _part(query, "clip_model."):
        query_clip, source = source, None
    else:
        query_clip = _load_clip(query, QUERY)
    query_prompt = _load_prompt(query, QUERY, query_clip, configuration.prompt.query, "query")
    if configuration.proposal.per_pixel:
        query.setdefault("non_object_embedding", torch.zeros(1, query_clip.embed_dim))
    _check_adapter(query, QUERY, query_clip, query_prompt)
    if proposal.sizes.class_layers[-1] != query_clip.embed_dim:
        raise CheckpointError(
            f"query embeddings are {proposal.sizes.class_layers[-1]} wide but {QUERY}clip_model's are "
            f"{query_clip.embed_dim}: these weights do not belong together"
        )
    region_clip, region_prompt = query_clip, query_prompt
    if source is not None:
        if configuration.region_prompt == "learned":
            raise CheckpointError(
                "another CLIP for the regions has no learned prompt: choose one, such as --set prompt.region=vild"
            )
        region_clip, region_prompt = source, None
    elif region or configuration.separate_region:
        _check_separate(bool(region), configuration)
        region_clip = _load_clip(region, REGION)
        region_prompt = _load_prompt(region, REGION, region_clip, configuration.region_prompt, "region")
        _check_adapter(region, REGION, region_clip, region_prompt)
    choose_mask_prompts(region_clip, configuration)
    non_object = query["non_object_embedding"].float()
    return Model(proposal, query_clip, region_clip, query_prompt, region_prompt, non_object)


def choose_mask_prompts(clip: ClipModel, configuration: Configuration) -> None:
    """Leave the mask prompts of `clip` out where clip.mask_prompts is false.

    Raises CheckpointError where it is true and there are none.
    """
    if configuration.clip.mask_prompts is False:
        clip.mask_prompts = None
    elif configuration.clip.mask_prompts and clip.mask_prompts is None:
        raise CheckpointError(
            f"the CLIP of the regions has no mask prompts ({MASK_PROMPTS}), which configuration {configuration.name} "
            "asks for: give the checkpoint that belongs to it, or --set clip.mask_prompts=false"
        )


def load_clip_source(source: str | Path, activation: str | None = None) -> ClipModel:
    """A CLIP by "model::weights" (open_clip's name and tag or file), "model::weights::tokenizer", or from a file.

    The third part is the tokenizer.json, or its folder, of a model whose tokenizer is not CLIP's own.

    The file is in OpenAI's layout, or a published checkpoint, of which the query side's CLIP is taken. Weights do not
    tell which `activation` they were trained with, "quick_gelu" or "gelu". Without it, OpenAI's archives, published
    checkpoints and other files get QuickGELU, those with a name what open_clip says of the name; a warning says so
    where that is a guess. Raises CheckpointError or ConfigurationError.
    """
    name, separator, weights = str(source).partition("::")
    weights, _, last = weights.partition("::")
    tokenizer = last or None
    if separator and not Path(weights).is_file():
        return open_clip_model(name, weights or None, activation, tokenizer)
    tensors = read_state_dict(weights if separator else source)
    own = {} if separator else _part(tensors, QUERY + "clip_model.")
    if activation is None and (own or is_openai_archive(tensors)):
        activation = "quick_gelu"
    if separator:
        clip = open_clip_model(name, tensors, activation, tokenizer)
    else:
        clip = build_clip(own or tensors, activation != "gelu")
    if activation is None:
        other = "gelu" if clip.activation == "quick_gelu" else "quick_gelu"
        warnings.warn(
            f"{source} does not say which activation it was trained with: {clip.activation} is taken (OpenAI's weights "
            f"need quick_gelu, most others gelu); say so with --set clip.activation={clip.activation}, or ={other}",
            stacklevel=3,
        )
    return clip


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a module's tensors."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _load_proposal(tensors: Mapping[str, Tensor], configuration: Configuration) -> Network:
    read = read_pixel_sizes if configuration.proposal.per_pixel else read_proposal_sizes
    try:
        sizes = read({key: tuple(value.shape) for key, value in tensors.items()})
    except (KeyError, IndexError):  # the comparison below then names the missing keys
        last = tensors.get("sem_seg_head.predictor.class_embed.layers.1.bias")
        sizes = proposal_sizes(configuration.proposal.backbone, 512 if last is None else len(last))
    if isinstance(sizes.backbone, ResNetSizes):
        sizes = replace(sizes, backbone=replace(sizes.backbone, res5_dilation=configuration.proposal.res5_dilation))
    if sizes.kind != configuration.proposal.backbone:
        raise CheckpointError(
            f"the checkpoint's backbone is {sizes.kind}, configuration {configuration.name} says "
            f"{configuration.proposal.backbone}: choose a matching configuration, or --set "
            f"proposal.backbone={sizes.kind}"
        )
    network = network_on_meta(sizes, configuration.proposal.per_pixel)
    _compare(shapes_of(network), tensors)
    if isinstance(sizes.backbone, SwinSizes):
        check_swin(sizes.backbone, tensors)
    floats = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    network.load_state_dict(floats, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _load_clip(adapter: Mapping[str, Tensor], prefix: str) -> ClipModel:
    tensors = _part(adapter, "clip_model.")
    if not tensors:
        raise CheckpointError(f"the checkpoint has no {prefix}clip_model.*: give a CLIP with it (--clip)")
    tensors.setdefault("logit_scale", torch.tensor(0.0))  # the temperature is the configuration's
    try:
        return build_clip(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{prefix}clip_model: {error}") from None


def _load_prompt(
    adapter: Mapping[str, Tensor], prefix: str, clip: ClipModel, prompt: str | list[str], side: str
) -> LearnedPrompt | None:
    tensors = _part(adapter, "prompt_learner.")
    if prompt != "learned":
        if tensors:
            raise CheckpointError(
                f"the checkpoint has a learned prompt ({prefix}prompt_learner.*) but the configuration's is "
                f"{prompt!r}: set it with --set prompt.{side}=learned"
            )
        return None
    if not tensors:
        raise CheckpointError(
            f"the checkpoint has no learned prompt ({prefix}prompt_learner.*): choose another, such as "
            f"--set prompt.{side}=vild"
        )
    width = clip.token_embedding.shape[1]
    expected = dict.fromkeys(SIGNAL_TOKENS, (1, width))
    for name in ("prefix_prompt", "suffix_prompt"):
        if name in tensors:
            rows = tensors[name].shape[0] if tensors[name].ndim else 0
            expected[name] = (rows, width)
    _compare(expected, tensors, f"{prefix}prompt_learner.")
    for name, token in SIGNAL_TOKENS.items():
        if not torch.equal(tensors[name][0].float(), clip.token_embedding[token]):
            warnings.warn(
                f"{prefix}prompt_learner.{name} differs from row {token} of the token embedding, which is used instead",
                stacklevel=3,
            )
    none = torch.zeros(0, width)
    return LearnedPrompt(*(tensors.get(f"{place}_prompt", none).float() for place in ("prefix", "suffix")))


def _check_adapter(adapter: Mapping[str, Tensor], prefix: str, clip: ClipModel, prompt: LearnedPrompt | None) -> None:
    """Check an adapter's tensors apart from CLIP and prompt; its mean and std must be CLIP's."""
    parts = ("clip_model.", "prompt_learner.") if prompt is not None else ("clip_model.",)
    own = {key: value for key, value in adapter.items() if not key.startswith(parts)}
    expected: dict[str, tuple[int, ...]] = {"non_object_embedding": (1, clip.embed_dim)}
    expected |= {name: (1, 3, 1, 1) for name in ("pixel_mean", "pixel_std") if name in own}
    _compare(expected, own, prefix)
    for name, values in (("pixel_mean", clip.mean), ("pixel_std", clip.std)):
        if name in own and not np.allclose(own[name].flatten().numpy() / 255, values, rtol=0, atol=1e-3):
            raise CheckpointError(
                f"{prefix}{name} is {own[name].flatten().tolist()}, CLIP's is {[255 * value for value in values]}: "
                "these weights do not belong together"
            )


def _check_separate(found: bool, configuration: Configuration) -> None:
    if found and not configuration.separate_region:
        raise CheckpointError(
            f"the checkpoint has a separate region adapter, configuration {configuration.name} has none: "
            "set its prompt, such as --set prompt.region=learned"
        )
    if not found:
        raise CheckpointError(
            f"configuration {configuration.name} has a separate region adapter, the checkpoint has none: "
            "give a CLIP for the regions (--clip), or --set prompt.region=none"
        )


def _compare(expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor], prefix: str = "") -> None:
    """Raise CheckpointError in one line unless names and shapes agree."""
    missing = [f"missing {prefix}{key}" for key in expected if key not in found]
    extra = [f"extra {prefix}{key}" for key in found if key not in expected]
    misshapen = [
        f"{prefix}{key} is {_size(found[key].shape)}, not {_size(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key].shape) != tuple(shape)
    ]
    if missing or extra or misshapen:
        raise CheckpointError(
            f"the checkpoint does not fit: {len(missing)} keys missing, {len(extra)} extra, {len(misshapen)} misshapen "
            f"({list_problems(missing, extra, misshapen)}): give the checkpoint that belongs to the configuration"
        )


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
