"""The network goldens as models: which configuration and which weights stand behind each case."""

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.golden import REPOSITORY, load_golden
from vocabseg.export.checkpoint.load import Model, load_model
from vocabseg.export.configuration import Configuration, load_configuration

KEYS = REPOSITORY / "tests" / "data" / "keys" / "shapes.json.gz"
REFERENCE = REPOSITORY.parent / "shared" / "reference"
# Cases with the same weights stand together, so that one model at a time is in memory.
SMALL_CASES = (
    "c_r50_tiny16_vild",
    "d_all_empty",
    "d_all_empty_cliponly",
    "d_batch2",
    "d_clip_only",
    "d_maxsize_down",
    "d_no_ensemble",
    "d_single_class",
    "d_some_empty",
    "c2_r101c_tiny16_single",
    "d_matting_expand_zero",
    "c3_r50_tinyrn_learn_suffix",
    "d_odd_size",
    "d_separate_diff_clip",
)
BIG_CASES = (
    "a_r50_vitb16_vild",
    "b_r101c_vitb16_learnable",
    "b2_r101c_vitb16_separate",
    "b3_voccfg_r101c_vitb16_separate",
)
# OVSeg's, made by its own published code; those with one set of weights stand together, too.
OVSEG_CASES = (
    "t_swin_tiny14_mpt",
    "t_swin_tiny14_clip_only",
    "t_swin_tiny14_matting_expand_zero",
    "t_swin_tiny14_no_ensemble",
)
SLOW_OVSEG_CASES = ("t_swin_tiny14_no_mpt", "t_r101c_tiny16_mpt")  # with weights of their own
OVSEG_DEMOS = ("t_demo_tiny14", "t_demo_tiny14_one")
BIG_OVSEG_CASES = ("a_r101c_vitb16_mpt",)
_PROMPTS = {"learnable": "learned", "vild": "vild", "imagenet": "imagenet"}


@lru_cache(maxsize=1)
def _shape_lists() -> dict[str, Any]:
    with gzip.open(KEYS, "rt") as file:
        return json.load(file)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a checkpoint: of a network golden, or of a published layout such as "keys_R50_vild"."""
    stored = _shape_lists()
    return {key: tuple(shape) for key, shape in stored["lists"][stored["cases"][name]].items()}


def case_configuration(meta: dict[str, Any]) -> Configuration:
    """The configuration that a golden's `meta` describes."""
    model = meta["model"]
    clip = model["clip_adapter"]
    overrides = [
        f"input.min_size={model['min_size_test']}",
        f"input.max_size={model['max_size_test']}",
        f"region.mask_threshold={clip['MASK_THR']}",
        f"region.mask_fill={clip['MASK_FILL']}",
        f"region.expand_ratio={clip['MASK_EXPAND_RATIO']}",
        f"region.matting={str(clip['MASK_MATTING']).lower()}",
        f"ensemble.enabled={str(clip['CLIP_ENSEMBLE']).lower()}",
        f"ensemble.weight={clip['CLIP_ENSEMBLE_WEIGHT']}",
    ]
    if meta["config"].startswith("ovseg"):
        overrides.append(f"prompt.query={clip['TEXT_TEMPLATES']}")
        overrides.append(f"clip.mask_prompts={str(clip['MASK_PROMPT_FWD']).lower()}")
        return load_configuration("ovseg-swinb-vitl14" if model["swin"] else "ovseg-r101c-vitb16", overrides)
    overrides.append(f"prompt.query={_prompt(clip)}")
    if clip["SEPERATE_ADAPTER"]:
        overrides.append(f"prompt.region={_prompt(clip['REGION_CLIP_ADAPTER'])}")
    return load_configuration(f"zsseg-{model['backbone'].lower()}-vitb16-vild", overrides)


def _prompt(adapter: dict[str, Any]) -> str:
    if adapter["PROMPT_LEARNER"] == "predefined":
        return json.dumps(adapter["PREDEFINED_PROMPT_TEMPLATES"])
    return _PROMPTS[adapter["PROMPT_LEARNER"]]


def case_state_dict(name: str) -> dict[str, Any]:
    """The weights behind a golden, drawn from the names of its keys."""
    import torch

    from vocabseg.export.checkpoint.random_weights import fill

    return {key: torch.from_numpy(array) for key, array in fill(shapes(name)).items()}


@lru_cache(maxsize=1)
def _model(shape_list: str, name: str, overrides: tuple[str, ...]) -> Model:
    return load_model(case_state_dict(shape_list), load_configuration(name, overrides))


def case_model(name: str) -> tuple[dict[str, Any], dict[str, Any], Configuration, Model]:
    """Arrays, meta, configuration and model of a network golden; skips where the golden is not there."""
    arrays, meta = load_golden(name)
    configuration = case_configuration(meta)
    # Cases with the same weights share the model: nothing but backbone, prompts and mask prompts matters to loading.
    overrides = [f"prompt.query={json.dumps(configuration.prompt.query)}"]
    if configuration.prompt.region is not None:
        overrides.append(f"prompt.region={json.dumps(configuration.prompt.region)}")
    if configuration.clip.mask_prompts is not None:
        overrides.append(f"clip.mask_prompts={str(configuration.clip.mask_prompts).lower()}")
    model = _model(_shape_lists()["cases"][name], configuration.name, tuple(overrides))
    return arrays, meta, configuration, model


def reference_file(*parts: str) -> Path:
    """A file of the reference material; skips where it is not there."""
    path = REFERENCE.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the reference material ({'/'.join(parts)}) is not there")
    return path
