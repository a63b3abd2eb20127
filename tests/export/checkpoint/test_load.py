"""Published checkpoints: their layouts load strictly, and what does not fit is told in one line."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference_cases import shapes
from vocabseg.export.checkpoint import published
from vocabseg.export.checkpoint.file import read_state_dict
from vocabseg.export.checkpoint.load import load_clip_source, load_model
from vocabseg.export.checkpoint.published import published_shapes, random_state_dict
from vocabseg.export.checkpoint.random_weights import fill
from vocabseg.export.configuration import Configuration, load_configuration
from vocabseg.export.model.clip import MEAN, STD
from vocabseg.runtime.errors import CheckpointError

LAYOUTS = {
    "keys_R50_vild": ("zsseg-r50-vitb16-vild", ()),
    "keys_R50_learnable": ("zsseg-r50-vitb16-learned", ()),
    "keys_R101c_vild": ("zsseg-r101c-vitb16-vild", ()),
    "keys_R101c_learnable": ("zsseg-r101c-vitb16-learned", ()),
    "keys_R101c_learnable_separate": ("zsseg-r101c-vitb16-learned", ("prompt.region=vild",)),
    "keys_R101c_single_clip_rn50": ("zsseg-r101c-rn50-single", ()),
    "a_r101c_vitb16_mpt": ("ovseg-r101c-vitb16", ()),
}
SMALL = "c3_r50_tinyrn_learn_suffix"


def empty_weights(layout: str) -> dict[str, Tensor]:
    """Tensors of the right shapes that take no memory."""
    found = {key: torch.zeros(()).expand(shape) for key, shape in shapes(layout).items()}
    for key in found:
        if key.endswith(("pixel_mean", "pixel_std")):
            values = MEAN if key.endswith("mean") else STD
            found[key] = 255 * torch.tensor(values).reshape(1, 3, 1, 1)
    return found


@cache
def small_weights() -> dict[str, Tensor]:
    return {key: torch.from_numpy(array) for key, array in fill(shapes(SMALL)).items()}


def small_configuration(*overrides: str) -> Configuration:
    return load_configuration("zsseg-r50-vitb16-learned", overrides)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """A copy of a small checkpoint's names, to be spoilt."""
    return dict(small_weights())


def failure(state_dict: dict[str, Tensor], configuration: Configuration, clip_source: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(state_dict, configuration, clip_source)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(layout: str) -> None:
    name, overrides = LAYOUTS[layout]
    configuration = load_configuration(name, overrides)
    wanted = shapes(layout)
    assert published_shapes(configuration) == wanted
    model = load_model(empty_weights(layout), configuration)
    assert model.separate_region == layout.endswith("separate")
    assert (model.query_prompt is not None) == ("learn" in layout)
    assert model.non_object_embedding.shape == (1, model.query_clip.embed_dim)
    assert model.proposal.sizes.class_layers == (1024, wanted["clip_adapter.non_object_embedding"][1])
    if model.query_prompt is not None:
        assert model.query_prompt.prefix.shape == (16, 512)
        assert model.query_prompt.suffix.shape == (0, 512)


def test_voc_layout_learns_on_the_region_side() -> None:
    configuration = load_configuration("zsseg-r101c-vitb16-learned-voc15")
    assert published_shapes(configuration) == shapes("b3_voccfg_r101c_vitb16_separate")
    model = load_model(empty_weights("b3_voccfg_r101c_vitb16_separate"), configuration)
    assert model.query_prompt is None
    assert model.region_prompt is not None
    assert model.separate_region


def test_small_checkpoint() -> None:
    model = load_model(small_weights(), small_configuration())
    assert model.region_clip is model.query_clip
    assert model.query_prompt is not None
    assert torch.equal(model.query_prompt.prefix, small_weights()["clip_adapter.prompt_learner.prefix_prompt"])
    assert model.query_prompt.suffix.shape == (3, 128)
    assert model.query_clip.embed_dim == 64
    for key, value in model.proposal.state_dict().items():
        assert torch.equal(value, small_weights()[key]), key
    assert not any(parameter.requires_grad for parameter in model.proposal.parameters())


def test_other_spellings_and_harmless_keys(weights: dict[str, Tensor]) -> None:
    for key in list(weights):
        if key.startswith("sem_seg_head.pixel_decoder."):
            weights[key.replace("pixel_decoder.", "", 1)] = weights.pop(key)
        elif key.startswith("criterion.") or key.endswith(("num_batches_tracked", "logit_scale")):
            del weights[key]
    weights["pixel_mean"] = weights["pixel_std"] = torch.zeros(3, 1, 1)
    weights["backbone.stem.conv1.norm.num_batches_tracked"] = torch.tensor(5)
    model = load_model({f"module.{key}": value for key, value in weights.items()}, small_configuration())
    decoder = model.proposal.sem_seg_head.pixel_decoder
    assert torch.equal(decoder.mask_features.bias, small_weights()["sem_seg_head.pixel_decoder.mask_features.bias"])


def test_half_precision_becomes_float32(weights: dict[str, Tensor]) -> None:
    halves = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    model = load_model(halves, small_configuration())
    assert model.proposal.sem_seg_head.predictor.query_embed.weight.dtype == torch.float32
    assert model.query_clip.token_embedding.dtype == torch.float32
    assert model.non_object_embedding.dtype == torch.float32


@pytest.mark.parametrize(
    "key",
    [
        "backbone.res4.3.conv2.weight",
        "backbone.stem.conv1.weight",
        "sem_seg_head.pixel_decoder.layer_4.weight",
        "sem_seg_head.predictor.query_embed.weight",
        "sem_seg_head.predictor.transformer.decoder.layers.2.multihead_attn.in_proj_weight",
        "clip_adapter.non_object_embedding",
        "clip_adapter.clip_model.ln_final.weight",
        "clip_adapter.clip_model.visual.layer3.0.conv1.weight",
        "clip_adapter.prompt_learner.start_signal",
    ],
)
def test_missing_key(weights: dict[str, Tensor], key: str) -> None:
    del weights[key]
    message = failure(weights, small_configuration())
    assert key.removeprefix("clip_adapter.clip_model.") in message
    assert "missing" in message or "cannot read the sizes" in message


@pytest.mark.parametrize(
    "key",
    [
        "backbone.res4.3.conv4.weight",
        "sem_seg_head.predictor.transformer.encoder.norm.weight",
        "sem_seg_head.surplus.weight",
        "clip_adapter.surplus",
        "clip_adapter.clip_model.surplus",
        "clip_adapter.prompt_learner.surplus",
        "surplus",
    ],
)
def test_extra_key(weights: dict[str, Tensor], key: str) -> None:
    weights[key] = torch.zeros(2)
    message = failure(weights, small_configuration())
    assert "surplus" in message or key in message


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("backbone.res3.1.conv1.weight", (128, 512, 3, 3)),
        ("sem_seg_head.pixel_decoder.adapter_2.norm.bias", (255,)),
        ("sem_seg_head.predictor.mask_embed.layers.1.bias", (1, 256)),
        ("clip_adapter.non_object_embedding", (64,)),
        ("clip_adapter.clip_model.positional_embedding", (77, 64)),
        ("clip_adapter.prompt_learner.prefix_prompt", (4, 64)),
    ],
)
def test_misshapen_key(weights: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> None:
    weights[key] = torch.zeros(shape)
    message = failure(weights, small_configuration())
    assert key.removeprefix("clip_adapter.clip_model.") in message
    assert str(shape[-1]) in message


def test_long_lists_are_cut(weights: dict[str, Tensor]) -> None:
    for key in [key for key in weights if key.startswith("backbone.res5")]:
        del weights[key]
    message = failure(weights, small_configuration())
    assert "50 keys missing, 0 extra, 0 misshapen" in message
    assert "and 42 more" in message
    assert len(message) < 900


def test_backbone_must_agree(weights: dict[str, Tensor]) -> None:
    message = failure(weights, load_configuration("zsseg-r101c-vitb16-learned"))
    assert "backbone is r50" in message
    assert "--set proposal.backbone=r50" in message


def test_prompt_must_agree(weights: dict[str, Tensor]) -> None:
    assert "--set prompt.query=learned" in failure(weights, small_configuration("prompt.query=vild"))
    for key in [key for key in weights if "prompt_learner" in key]:
        del weights[key]
    assert "no learned prompt" in failure(weights, small_configuration())
    assert load_model(weights, small_configuration("prompt.query=vild")).query_prompt is None


def test_region_adapter_must_agree(weights: dict[str, Tensor]) -> None:
    assert "the checkpoint has none" in failure(weights, small_configuration("prompt.region=vild"))
    separate = {key: torch.from_numpy(array) for key, array in fill(shapes("d_separate_diff_clip")).items()}
    assert "--set prompt.region=" in failure(separate, small_configuration())
    model = load_model(separate, small_configuration("prompt.region=imagenet"))
    assert (model.query_clip.embed_dim, model.region_clip.embed_dim) == (64, 96)


def test_clip_must_be_the_one_that_was_trained_with(weights: dict[str, Tensor]) -> None:
    key = "sem_seg_head.predictor.class_embed.layers.1."
    weights |= {f"{key}weight": torch.zeros(96, 1024), f"{key}bias": torch.zeros(96)}
    assert "96" in failure(weights, small_configuration())
    weights = dict(small_weights()) | {"clip_adapter.pixel_mean": torch.full((1, 3, 1, 1), 127.5)}
    assert "pixel_mean" in failure(weights, small_configuration())


def test_changed_signal_is_warned_about(weights: dict[str, Tensor]) -> None:
    weights["clip_adapter.prompt_learner.dot_signal"] = torch.zeros(1, 128)
    with pytest.warns(UserWarning, match="dot_signal differs from row 269"):
        load_model(weights, small_configuration())


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_of_wrappers_are_no_part_of_a_name(weights: dict[str, Tensor], tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {prefix + key: value for key, value in weights.items()}}, path)
    assert read_state_dict(path).keys() == weights.keys()
    load_model({prefix + key: value for key, value in weights.items()}, small_configuration())


def test_a_compiled_part_has_its_own_name_and_two_models_are_told(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    compiled = {key.replace("backbone.", "backbone._orig_mod.", 1): value for key, value in weights.items()}
    torch.save(compiled, path)
    assert read_state_dict(path).keys() == weights.keys()
    key = next(iter(weights))
    torch.save(weights | {f"module.{key}": weights[key]}, path)
    with pytest.raises(CheckpointError, match=f"holds {key} twice, once as module.{key}"):
        read_state_dict(path)


def test_an_unknown_prefix_is_seen_in_the_message(weights: dict[str, Tensor]) -> None:
    message = failure({f"net.{key}": value for key, value in weights.items()}, small_configuration())
    assert "missing backbone." in message
    assert "extra net.backbone." in message


@pytest.mark.filterwarnings("ignore:.*does not say which activation")
def test_clip_of_ones_own_for_the_regions(weights: dict[str, Tensor], tmp_path: Path) -> None:
    prefix = "_region_clip_adapter.clip_model."
    other = {key: shape for key, shape in shapes("d_separate_diff_clip").items() if key.startswith(prefix)}
    path = tmp_path / "clip.pt"
    torch.save({key.removeprefix(prefix): torch.from_numpy(array) for key, array in fill(other).items()}, path)
    assert load_clip_source(path).embed_dim == 96
    assert "no learned prompt" in failure(weights, small_configuration(), str(path))
    model = load_model(weights, small_configuration("prompt.region=vild"), path)
    assert model.query_prompt is not None
    assert model.region_prompt is None
    assert model.region_clip.embed_dim == 96
    assert model.query_clip.embed_dim == 64


@pytest.mark.filterwarnings("ignore:.*does not say which activation")
def test_checkpoint_without_clip(weights: dict[str, Tensor], tmp_path: Path) -> None:
    prefix = "clip_adapter.clip_model."
    path = tmp_path / "clip.pt"
    torch.save({key.removeprefix(prefix): weights.pop(key) for key in list(weights) if key.startswith(prefix)}, path)
    assert "no clip_adapter.clip_model" in failure(weights, small_configuration())
    model = load_model(weights, small_configuration(), path)
    assert not model.separate_region
    assert model.query_clip.embed_dim == 64


def test_clip_out_of_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": small_weights()}, path)
    assert load_clip_source(path).embed_dim == 64


def test_random_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the small layout in place of the published one, which takes a minute."""
    monkeypatch.setattr(published, "published_shapes", lambda configuration: shapes(SMALL))
    configuration = small_configuration()
    found = random_state_dict(configuration)
    assert found.keys() == small_weights().keys()
    load_model(found, configuration)


def test_unknown_clip_model() -> None:
    with pytest.raises(CheckpointError, match="'ViT-Z-1'"):
        published_shapes(small_configuration("clip.model=ViT-Z-1"))
