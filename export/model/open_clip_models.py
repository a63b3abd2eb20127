"""open_clip's models by name: which can be used, and how they are made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vocabseg.export.model.clip import NO_WEIGHTS, ClipModel, load_weights, take_mask_prompts
from vocabseg.export.other_tokenizer import read_tokenizer
from vocabseg.runtime.errors import CheckpointError, ConfigurationError


def open_clip_model(
    name: str,
    pretrained: str | Mapping[str, Tensor] | None = None,
    activation: str | None = None,
    tokenizer: str | Path | None = None,
) -> ClipModel:
    """An open_clip model by name; `pretrained` is one of its tags, or tensors by name.

    Without `pretrained` the weights are random; `activation` "quick_gelu" or "gelu" replaces the model's. `tokenizer`
    is the file or folder of one that is not CLIP's own. Raises ConfigurationError for an unknown name or tag, for a
    model that cannot be used and for a tokenizer that does not belong to it, CheckpointError for weights that cannot be
    loaded or do not fit.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    name = name.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        raise ConfigurationError(f"unknown CLIP model {name!r}: `vocabseg export --list-clips` lists the known ones")
    problem = unusable(config)
    if problem:
        raise ConfigurationError(
            f"the CLIP model {name} cannot be used: {problem}; use another (`vocabseg export --list-clips`)"
        )
    needed = foreign_tokenizer(config)
    if bool(needed) != (tokenizer is not None):
        raise ConfigurationError(
            f"the CLIP model {name} reads text with the tokenizer {needed}: give the folder that holds its "
            f"tokenizer.json, as --clip {name}::WEIGHTS::FOLDER"
            if needed
            else f"the CLIP model {name} has CLIP's own tokenizer, which is there: leave {tokenizer} out"
        )
    tag = pretrained if isinstance(pretrained, str) else None
    tags = list_pretrained_tags_by_model(name)
    if tag is not None and tag not in tags:
        raise ConfigurationError(
            f"{tag!r} is neither a file nor one of the weights of {name}: use one of {', '.join(tags) or '(none)'}"
        )
    try:
        # Weights trained with the sigmoid approximation of GELU need it whatever the architecture's own setting.
        quick = bool(tag and get_pretrained_cfg(name, tag).get("quick_gelu", False))
        chosen = {} if activation is None else {"quick_gelu": activation == "quick_gelu"}
        module = open_clip.create_model(name, pretrained=tag, precision="fp32", force_quick_gelu=quick, **chosen)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"cannot load {name} with weights {tag!r}: {reason}") from error
    prompts = None
    if isinstance(pretrained, Mapping):
        from open_clip.convert import convert_state_dict

        tensors = {key: value for key, value in pretrained.items() if key not in NO_WEIGHTS}
        prompts = take_mask_prompts(tensors, module.visual)
        load_weights(module, convert_state_dict(module, tensors))
    preprocess = module.visual.preprocess_cfg
    text = None if tokenizer is None else read_tokenizer(tokenizer, name, module.text)
    return ClipModel(module, preprocess["mean"], preprocess["std"], prompts, text)


def known_models() -> dict[str, str]:
    """open_clip's models by name: "yes", "with its tokenizer NAME", or why one cannot be used ("no: ...")."""
    import open_clip

    answers = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        problem, tokenizer = unusable(config), foreign_tokenizer(config)
        answers[name] = f"no: {problem}" if problem else f"with its tokenizer {tokenizer}" if tokenizer else "yes"
    return answers


def unusable(config: Mapping[str, Any]) -> str | None:
    """Why a model of this configuration cannot be used; None if it can."""
    text, vision = config["text_cfg"], config["vision_cfg"]
    if text.get("hf_model_name"):
        return f"its text encoder is {text['hf_model_name']} of the package transformers"
    if text.get("embed_cls") or vision.get("attentional_pool"):
        return "its features are pooled by CoCa's own tokens"
    if text.get("use_pad_mask"):
        return "its text encoder masks padding"
    pool = text.get("pool_type", "argmax")
    if pool not in (("last", "eos") if foreign_tokenizer(config) else ("argmax", "eos")):
        return f"its text feature is taken by {pool!r}"
    return None


def foreign_tokenizer(config: Mapping[str, Any]) -> str | None:
    """The Hugging Face name of a tokenizer that is not CLIP's own."""
    return config["text_cfg"].get("hf_tokenizer_name")
