"""The proposal network: sizes read off tensors, published names, and its parts against torch's own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.golden import load_golden
from tests.parity import check_close
from tests.reference_cases import shapes
from vocabseg.export.model.maskformer import (
    Attention,
    ProposalNetwork,
    ProposalSizes,
    proposal_sizes,
    read_proposal_sizes,
    sine_position_embedding,
)
from vocabseg.export.model.resnet import FrozenBatchNorm2d, ResNet, ResNetSizes, resnet_sizes


def tiny_sizes(deep: bool = False) -> ProposalSizes:
    stem = (8, 8, 16) if deep else (16,)
    backbone = ResNetSizes(stem, (1, 2, 1, 3), (8, 8, 8, 16), (32, 32, 32, 64))
    return ProposalSizes(backbone, 64, 16, 64, 48, 2, 7, (24, 12), (64, 16))


@pytest.mark.parametrize("height_width", [(7, 11), (20, 30), (1, 1)])
def test_position_embedding(height_width: tuple[int, int]) -> None:
    golden, _ = load_golden("e_resize_pad_pos")
    h, w = height_width
    check_close(
        "position embedding", sine_position_embedding(torch.zeros(2, 256, h, w)).numpy(), golden[f"sine_{h}x{w}"], 1e-6
    )


@pytest.mark.parametrize(("layout", "backbone"), [("keys_R50_vild", "r50"), ("keys_R101c_vild", "r101c")])
def test_published_sizes_and_names(layout: str, backbone: str) -> None:
    published = {key: shape for key, shape in shapes(layout).items() if key.startswith(("backbone.", "sem_seg_head."))}
    assert read_proposal_sizes(published) == proposal_sizes(backbone, 512)
    with torch.device("meta"):
        network = ProposalNetwork(proposal_sizes(backbone, 512))
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == published


@pytest.mark.parametrize("deep", [False, True])
def test_sizes_are_read_off_any_network(deep: bool) -> None:
    sizes = tiny_sizes(deep)
    network = ProposalNetwork(sizes)
    assert read_proposal_sizes({key: tuple(value.shape) for key, value in network.state_dict().items()}) == sizes


@pytest.mark.parametrize("deep", [False, True])
def test_shapes(deep: bool) -> None:
    torch.manual_seed(0)
    network = ProposalNetwork(tiny_sizes(deep)).eval()
    with torch.inference_mode():
        for batch, height, width in ((1, 32, 32), (3, 64, 96)):
            masks, queries = network(torch.randn(batch, 3, height, width))
            assert masks.shape == (batch, 7, height // 4, width // 4)
            assert queries.shape == (batch, 7, 12)
            assert masks.isfinite().all()


def test_an_image_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    network = ProposalNetwork(tiny_sizes()).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        together, alone = network(images), network(images[1:])
    for both, one in zip(together, alone, strict=True):
        assert torch.allclose(both[1:], one, atol=1e-5)


def test_saved_names_load_again() -> None:
    torch.manual_seed(0)
    first, second = ProposalNetwork(tiny_sizes()), ProposalNetwork(tiny_sizes())
    second.load_state_dict(first.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="Missing"):
        second.load_state_dict({key: value for key, value in first.state_dict().items() if "in_proj_weight" not in key})


def test_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(64, 8, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours = Attention(64, 8)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, key, value = torch.randn(2, 5, 64), torch.randn(2, 9, 64), torch.randn(2, 9, 64)
    expected, _ = theirs(query, key, value)
    assert torch.allclose(ours(query, key, value), expected, atol=1e-6)


def test_frozen_batch_norm_equals_torchs() -> None:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(6).eval()
    for tensor in (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    ours = FrozenBatchNorm2d(6)
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if "num_batches" not in key})
    x = torch.randn(2, 6, 4, 4)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("deep", [False, True])
def test_a_dilated_last_stage_keeps_its_stride(deep: bool) -> None:
    """As detectron2's RES5_DILATION: stride 16, dilations doubled, and the masks as large as ever."""
    sizes = tiny_sizes(deep)
    sizes = replace(sizes, backbone=replace(sizes.backbone, res5_dilation=2))
    network = ProposalNetwork(sizes).eval()
    convolutions = [block.conv2 for block in network.backbone.get_submodule("res5")]
    assert [conv.stride for conv in convolutions] == [(1, 1)] * 3
    assert [conv.dilation[0] for conv in convolutions] == ([2, 4, 8] if deep else [2, 2, 2])
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert [feature.shape[2:] for feature in network.backbone(image)] == [(16, 24), (8, 12), (4, 6), (4, 6)]
        assert network(image)[0].shape == (1, 7, 16, 24)


def test_backbones_differ_where_published() -> None:
    with torch.device("meta"):
        r50, r101c = ResNet(resnet_sizes("r50")), ResNet(resnet_sizes("r101c"))
    assert [block.conv2.dilation for block in r50.get_submodule("res5")] == [(1, 1)] * 3
    assert [block.conv2.dilation for block in r101c.get_submodule("res5")] == [(1, 1), (2, 2), (4, 4)]
    for network in (r50, r101c):
        assert [block.conv2.stride for block in network.get_submodule("res5")] == [(2, 2), (1, 1), (1, 1)]
        assert network.get_submodule("res2.0").conv2.stride == (1, 1)
        features = network(torch.zeros(1, 3, 64, 96, device="meta"))
        assert [feature.shape[1:] for feature in features] == [
            (256, 16, 24), (512, 8, 12), (1024, 4, 6), (2048, 2, 3)
        ]  # fmt: skip
    assert len(r101c.get_submodule("res4")) == 23
