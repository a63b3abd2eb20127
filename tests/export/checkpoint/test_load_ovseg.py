"""OVSeg's checkpoints: Swin and mask prompts load strictly, whole or as CLIP alone; what does not fit is told."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.export.model.small_models import clip_shapes, clip_tensors, small_clip
from tests.reference_cases import case_state_dict
from vocabseg.export.checkpoint.load import load_clip_source, load_model
from vocabseg.export.checkpoint.published import published_shapes
from vocabseg.export.configuration import load_configuration
from vocabseg.export.model.clip import MASK_PROMPTS
from vocabseg.export.model.maskformer import proposal_sizes, read_proposal_sizes
from vocabseg.runtime.errors import CheckpointError

PROMPTS = f"clip_adapter.clip_model.{MASK_PROMPTS}"
INDEX = "backbone.layers.2.blocks.1.attn.relative_position_index"


@cache
def whole() -> dict[str, Tensor]:
    return case_state_dict("t_swin_tiny14_mpt")


def test_a_whole_checkpoint() -> None:
    model = load_model(whole(), load_configuration("ovseg-swinb-vitl14"))
    assert model.proposal.sizes.kind == "swin"
    assert not model.proposal.sizes.projected  # the last stage is as wide as the decoder
    for key, value in model.proposal.state_dict().items():
        assert torch.equal(value, whole()[key]), key
    assert model.region_clip.mask_prompts is not None
    assert torch.equal(model.region_clip.mask_prompts, whole()[PROMPTS])
    assert model.region_clip.patch_grid == 16
    without = load_model(whole(), load_configuration("ovseg-swinb-vitl14", ["clip.mask_prompts=false"]))
    assert without.region_clip.patch_grid == 0
    # Unless the configuration says something, the weights decide.
    default = load_configuration("zsseg-r101c-vitb16-vild", ["proposal.backbone=swin"])
    assert load_model(whole(), default).region_clip.patch_grid == 16


def test_published_sizes_of_swin_b() -> None:
    shapes = published_shapes(load_configuration("ovseg-swinb-vitl14"))
    assert read_proposal_sizes(shapes) == proposal_sizes("swin", 768)
    assert shapes["backbone.layers.3.blocks.0.attn.relative_position_bias_table"] == (23 * 23, 32)
    assert shapes[PROMPTS] == (3, 256, 1024)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({PROMPTS: None}, "no mask prompts .* --set clip.mask_prompts=false"),
        ({PROMPTS: torch.zeros(3, 196, 192)}, r"3x196x192, not 1 to 4 times 256 \(or 1\) times 192"),
        ({PROMPTS: torch.zeros(5, 256, 192)}, "5x256x192"),
        ({PROMPTS: torch.zeros(192)}, "mask_embedding is 192,"),
        ({INDEX: torch.zeros(49, 49, dtype=torch.int64)}, f"{INDEX} does not number"),
        ({"backbone.layers.1.blocks.0.attn.relative_position_bias_table": torch.zeros(169, 3)}, "169x2"),
        (
            {f"backbone.layers.1.blocks.{b}.attn.relative_position_bias_table": torch.zeros(169, 3) for b in (0, 1)},
            "stage of 64 channels has 3 heads",
        ),
        ({"backbone.norm3.bias": None}, "missing backbone.norm3.bias"),
        ({"backbone.absolute_pos_embed": torch.zeros(1, 32, 7, 7)}, "extra backbone.absolute_pos_embed"),
    ],
)  # fmt: skip
def test_what_does_not_fit(changes: dict[str, Tensor | None], told: str) -> None:
    tensors = {**whole(), **{key: value for key, value in changes.items() if value is not None}}
    for key in [key for key, value in changes.items() if value is None]:
        del tensors[key]
    with pytest.raises(CheckpointError, match=told) as caught:
        load_model(tensors, load_configuration("ovseg-swinb-vitl14"))
    assert "\n" not in str(caught.value)


def test_backbones_are_told_apart() -> None:
    with pytest.raises(CheckpointError, match=r"backbone is swin.*--set proposal\.backbone=swin"):
        load_model(whole(), load_configuration("ovseg-r101c-vitb16"))


@pytest.mark.parametrize("patches", [4, 1])
def test_clip_alone(tmp_path: Path, patches: int) -> None:
    """As open_clip's training saves it. One learned token for all patches is the same as one for each."""
    path = tmp_path / "clip.pt"
    tensors = clip_tensors({**clip_shapes(), MASK_PROMPTS: (2, patches, 64)})
    torch.save({"epoch": 5, "state_dict": {f"module.{key}": value for key, value in tensors.items()}}, path)
    clip = load_clip_source(path, "quick_gelu")
    assert clip.patch_grid == 2
    crops, masks = torch.randn(3, 3, 32, 32), (torch.rand(3, 2, 2) > 0.5).float()
    tower = clip.image_tower
    clip.mask_prompts = clip.mask_prompts.expand(-1, 4, -1)
    assert torch.equal(tower(crops, masks), clip.make_image_tower()(crops, masks))
    assert torch.equal(tower(crops), small_clip().image_tower(crops))
