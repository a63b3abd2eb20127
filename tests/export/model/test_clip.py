"""CLIP's towers against open_clip's own forward, and what is refused."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.export.model.small_models import CROP, clip_shapes, clip_tensors, small_clip
from tests.golden import load_golden
from tests.reference_cases import case_model
from vocabseg.export.checkpoint.load import load_clip_source
from vocabseg.export.model.attention import use_fused_attention
from vocabseg.export.model.clip import MEAN, build_clip
from vocabseg.export.model.open_clip_models import open_clip_model
from vocabseg.export.model.towers import prune_last_block
from vocabseg.runtime.errors import CheckpointError, ConfigurationError

open_clip = pytest.importorskip("open_clip", reason="open_clip holds the CLIP modules")

KINDS = pytest.mark.parametrize("patch", [16, None], ids=["vit", "resnet"])


def original(tensors, patch, image_size=None):
    """open_clip's own model with these weights, its attention untouched."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    if patch is None:
        vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=4, image_size=image_size or 64, head_width=64)
    else:
        vision = CLIPVisionCfg(layers=2, width=64, patch_size=patch, image_size=image_size or CROP)
    model = CLIP(32, vision, CLIPTextCfg(width=64, heads=1, layers=2), quick_gelu=True)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def token_ids(*texts):
    ids = open_clip.get_tokenizer("ViT-B-16")(list(texts))
    return ids, ids.argmax(dim=1)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@KINDS
@pytest.mark.parametrize("fused", [False, True])
def test_towers_compute_what_open_clip_computes(patch, fused):
    tensors = clip_tensors(clip_shapes(patch))
    reference, clip = original(tensors, patch), build_clip(tensors)
    crops = noise(3, 3, clip.image_size, clip.image_size)
    ids, ends = token_ids("a photo of a cat.", "x", "grass " * 70)
    for tower in (clip.image_tower, clip.text_tower):
        use_fused_attention(tower, fused)
    with torch.no_grad():
        assert (clip.image_tower(crops) - reference.encode_image(crops)).abs().max() <= 1e-5
        assert (prune_last_block(clip.image_tower)(crops) - reference.encode_image(crops)).abs().max() <= 1e-5
        assert (clip.text_tower(ids, ends) - reference.encode_text(ids)).abs().max() <= 1e-5
    assert (clip.embed_dim, clip.vocab_size, clip.context_length) == (32, 49408, 77)
    assert clip.image_size == (64 if patch is None else CROP)
    assert clip.token_embedding.shape == (49408, 64)


def test_crops_of_a_golden_give_its_features():
    arrays, _, _, model = case_model("c_r50_tiny16_vild")
    with torch.no_grad():
        features = F.normalize(model.region_clip.image_tower(torch.from_numpy(arrays["crop_full_0"])), dim=1).numpy()
    expected = load_golden("c_r50_tiny16_vild")[0]["crop_features"][arrays["crop_idx_0"]]
    assert np.abs(features - expected).max() <= 1e-5


@KINDS
def test_another_crop_size_resizes_the_position_embedding_once(patch):
    tensors = clip_tensors(clip_shapes(patch))
    key = "visual.attnpool.positional_embedding" if patch is None else "visual.positional_embedding"
    stride, size = (32, 160) if patch is None else (16, 80)
    old = round((len(tensors[key]) - 1) ** 0.5)
    new = size // stride
    assert new > old
    grid = tensors[key][1:].reshape(old, old, -1).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)[0]
    resized = torch.cat([tensors[key][:1], grid.permute(1, 2, 0).reshape(new * new, -1)])
    reference = original({**tensors, key: resized}, patch, size)
    crops = noise(2, 3, size, size)
    with torch.no_grad():
        found = build_clip(tensors).make_image_tower(size)(crops)
        assert (found - reference.encode_image(crops)).abs().max() <= 1e-5


@KINDS
@pytest.mark.parametrize("size", [8, 50])
def test_a_crop_size_that_does_not_fit_is_refused(patch, size):
    with pytest.raises(ConfigurationError, match=f"crop size {size} .*multiple of {32 if patch is None else 16}"):
        small_clip(patch=patch).make_image_tower(size)


def test_extra_rows_are_embeddings_of_ids_behind_the_vocabulary():
    clip = small_clip()
    ids, ends = token_ids("a cat", "a dog on the lawn")
    rows = clip.token_embedding[ids[1, 2:4]]
    tower = clip.make_text_tower(rows)
    renamed = ids.clone()
    renamed[1, 2:4] = torch.tensor([49408, 49409])
    with torch.no_grad():
        assert torch.equal(tower(renamed, ends), clip.text_tower(ids, ends))
    assert clip.vocab_size == 49408


def test_the_feature_is_taken_at_the_index_that_is_given():
    clip = small_clip()
    ids, ends = token_ids("a cat", "a cat")
    with torch.no_grad():
        early = clip.text_tower(ids, ends - torch.tensor([0, 1]))
        cut = ids[:1].clone()
        cut[0, ends[0] :] = 7  # what comes later cannot matter to an earlier token
        assert (clip.text_tower(cut, ends[:1] - 1) - early[1:]).abs().max() <= 1e-6
        assert (early[0] - early[1]).abs().max() > 1e-2


def test_half_precision_weights_become_float32():
    tensors = {key: value.half() for key, value in clip_tensors(clip_shapes()).items()}
    tensors["input_resolution"] = torch.tensor(224)  # as OpenAI's archives have it
    with torch.no_grad():
        assert build_clip(tensors).image_tower(noise(1, 3, CROP, CROP)).dtype == torch.float32


def test_weights_that_do_not_fit_are_listed():
    tensors = clip_tensors(clip_shapes())
    tensors["text_projection_"] = tensors["logit_scale"]
    del tensors["ln_final.bias"]
    tensors["visual.ln_pre.weight"] = torch.ones(3)
    with pytest.raises(CheckpointError) as caught:
        build_clip(tensors)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("3 keys", "missing ln_final.bias", "unknown text_projection_", "visual.ln_pre.weight is (3,)"):
        assert part in message
    with pytest.raises(CheckpointError, match=r"OpenAI's layout.*attnpool"):
        build_clip({"weight": torch.ones(1)})


def registered(tmp_path: Path, name: str, **vision: object) -> str:
    text = {"width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": {"image_size": 32, **vision}, "text_cfg": text}
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    return name


def gelus(clip) -> set[str]:
    return {type(part).__name__ for part in clip.module.modules() if "GELU" in type(part).__name__}


QUESTION = "does not say which activation"


def test_the_activation_of_a_file_is_asked_for(tmp_path):
    """OpenAI's archives repeat their sizes; other weights tell nothing."""
    tensors = clip_tensors(clip_shapes())
    plain, archive, published = (tmp_path / name for name in ("plain.pt", "archive.pt", "published.pt"))
    torch.save({"epoch": 32, "state_dict": {f"module.{key}": value for key, value in tensors.items()}}, plain)
    sizes = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(tensors | sizes, archive)
    torch.save({f"clip_adapter.clip_model.{key}": value for key, value in tensors.items()}, published)
    with pytest.warns(UserWarning, match=rf"plain\.pt {QUESTION}.*--set clip\.activation=quick_gelu, or =gelu"):
        assert gelus(load_clip_source(plain)) == {"QuickGELU"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert gelus(load_clip_source(plain, "gelu")) == {"GELU"}
        assert gelus(load_clip_source(plain, "quick_gelu")) == {"QuickGELU"}
        for known in (archive, published):
            assert gelus(load_clip_source(known)) == {"QuickGELU"}
            assert gelus(load_clip_source(known, "gelu")) == {"GELU"}
    assert load_clip_source(archive).activation == "quick_gelu"
    assert load_clip_source(archive, "gelu").activation == "gelu"


def test_the_activation_of_a_named_file_is_asked_for(tmp_path):
    name = registered(tmp_path, "tiny-activation", layers=1, width=64, patch_size=16)
    weights, archive = tmp_path / "weights.pt", tmp_path / "archive.pt"
    tensors = open_clip.create_model(name).state_dict()
    torch.save(tensors, weights)
    sizes = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(tensors | sizes, archive)
    with pytest.warns(UserWarning, match=f"{QUESTION}.*gelu is taken.*, or =quick_gelu"):
        assert gelus(load_clip_source(f"{name}::{weights}")) == {"GELU"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert gelus(load_clip_source(f"{name}::{weights}", "quick_gelu")) == {"QuickGELU"}
        assert gelus(load_clip_source(f"{name}::{archive}")) == {"QuickGELU"}


@pytest.mark.parametrize("named", [False, True])
def test_a_torchscript_archive_of_open_clip(tmp_path, named):
    name = registered(tmp_path, "tiny-script", layers=1, width=64, patch_size=16)
    path = tmp_path / "script.pt"
    module = open_clip.create_model(name).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)
    clip = load_clip_source(f"{name}::{path}" if named else path, "gelu")
    with torch.no_grad():
        crops = noise(2, 3, 32, 32)
        assert (clip.image_tower(crops) - module.encode_image(crops)).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore:.*does not say which activation")
def test_any_open_clip_model_by_name(tmp_path):
    name = registered(tmp_path, "tiny-scaled", layers=1, width=64, patch_size=16, ls_init_value=0.1)
    reference = open_clip.create_model(name).eval()
    weights = tmp_path / "weights.pt"
    torch.save(reference.state_dict(), weights)
    clip = load_clip_source(f"{name}::{weights}")
    crops, (ids, ends) = noise(2, 3, 32, 32), token_ids("a cat", "sky")
    with torch.no_grad():
        for tower in (clip.image_tower, prune_last_block(clip.image_tower)):  # of one layer, scaled
            assert (tower(crops) - reference.encode_image(crops)).abs().max() <= 1e-5
        assert (clip.text_tower(ids, ends) - reference.encode_text(ids)).abs().max() <= 1e-5
    assert "GELU(approximate='none')" in str(clip.text_tower)  # not the approximation of OpenAI's weights
    assert clip.mean == MEAN


def test_the_last_block_computes_the_class_token_alone():
    from torch.utils.flop_counter import FlopCounterMode

    tower = small_clip().image_tower
    counts = []
    for module in (tower, prune_last_block(tower)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(noise(1, 3, CROP, CROP))
        counts.append(counter.get_total_flops())
    tokens, width = 1 + (CROP // 16) ** 2, 64
    unread = 2 * (tokens - 1) * (10 * width * width + 2 * tokens * width)  # query, projection, MLP; attention's two
    assert counts[0] - counts[1] == unread
    assert [type(block).__name__ for block in tower.blocks] == ["ResidualAttentionBlock"] * 2  # as they were


@pytest.mark.parametrize("kind", ["averaging", "ResNet", "text"])
def test_towers_whose_tokens_are_all_read_stay_as_they_are(kind):
    clip = small_clip(patch=None if kind == "ResNet" else 16)
    tower = clip.text_tower if kind == "text" else clip.image_tower
    if kind == "averaging":
        tower.pool = "avg"
    assert prune_last_block(tower) is tower


def test_an_image_encoder_of_timm_runs_at_its_own_size(tmp_path):
    clip = open_clip_model(registered(tmp_path, "tiny-timm", timm_model_name="test_vit", timm_pool="", image_size=64))
    with torch.no_grad():
        assert clip.image_tower(noise(2, 3, 64, 64)).shape == (2, 16)
    with pytest.raises(ConfigurationError, match=r"region.crop_size=64"):
        clip.make_image_tower(96)
