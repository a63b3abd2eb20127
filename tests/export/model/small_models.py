"""Models of a few thousand weights in the published layout, for tests that export."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vocabseg.export.checkpoint.load import LearnedPrompt, Model
from vocabseg.export.checkpoint.random_weights import fill
from vocabseg.export.configuration import Configuration, load_configuration
from vocabseg.export.model.clip import ClipModel, build_clip
from vocabseg.export.model.maskformer import ProposalNetwork, ProposalSizes
from vocabseg.export.model.resnet import ResNetSizes
from vocabseg.export.model.swin import SwinSizes

EMBEDDING, TEXT_WIDTH, CROP = 32, 64, 32
QUERIES = 10


def clip_shapes(patch: int | None = 16, text_layers: int = 2, vision_width: int = 64) -> dict[str, tuple[int, ...]]:
    """Shapes of a CLIP in OpenAI's layout: a vision transformer, or a ResNet where `patch` is None."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    if patch is None:
        vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=4, image_size=64, head_width=64)
    else:
        vision = CLIPVisionCfg(layers=2, width=vision_width, patch_size=patch, image_size=CROP)
    text = CLIPTextCfg(width=TEXT_WIDTH, heads=1, layers=text_layers)
    with torch.device("meta"):
        model = CLIP(EMBEDDING, vision, text, quick_gelu=True)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def clip_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights for these shapes."""
    prefix = "clip_adapter.clip_model."
    arrays = fill({prefix + key: shape for key, shape in shapes.items()})
    return {key.removeprefix(prefix): torch.from_numpy(array) for key, array in arrays.items()}


def small_clip(**sizes: int | None) -> ClipModel:
    """A CLIP of the sizes that clip_shapes takes."""
    return build_clip(clip_tensors(clip_shapes(**sizes)))


def small_proposal(
    deep_stem: bool = False, swin: bool = False, queries: int = QUERIES, embedding: int = EMBEDDING
) -> ProposalNetwork:
    """A proposal network with one block per stage (a Swin's first stage has two)."""
    backbone: ResNetSizes | SwinSizes
    backbone = ResNetSizes((8, 8, 16) if deep_stem else (16,), (1, 1, 1, 1), (8, 8, 8, 8), (32, 32, 32, 64))
    if swin:
        backbone = SwinSizes(width=8, blocks=(2, 1, 1, 1), heads=(1, 1, 2, 2), window=3, feed_forward=2)
    sizes = ProposalSizes(
        backbone=backbone, pixel=64, mask=32, hidden=32, feed_forward=64, layers=2, queries=queries,
        class_layers=(64, embedding), mask_layers=(32, 32, 32),
    )  # fmt: skip
    network = ProposalNetwork(sizes)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(array) for key, array in fill(shapes).items()})
    return network.eval().requires_grad_(False)


def small_prompt(prefix: int, suffix: int) -> LearnedPrompt:
    """A learned prompt with that many vectors before and behind the name."""
    generator = torch.Generator().manual_seed(prefix + 10 * suffix)
    return LearnedPrompt(*(0.02 * torch.randn(n, TEXT_WIDTH, generator=generator) for n in (prefix, suffix)))


def small_configuration(*overrides: str) -> Configuration:
    """A published configuration in small sizes."""
    sizes = ["input.min_size=64", "input.max_size=128", f"region.crop_size={CROP}"]
    return load_configuration("zsseg-r50-vitb16-vild", [*sizes, *overrides])


def small_model(
    query_prompt: LearnedPrompt | None = None,
    region_clip: ClipModel | None = None,
    region_prompt: LearnedPrompt | None = None,
) -> Model:
    """A whole model; with `region_clip` it has a separate region adapter."""
    clip = small_clip()
    if region_clip is None:
        region_clip, region_prompt = clip, query_prompt
    return Model(small_proposal(), clip, region_clip, query_prompt, region_prompt, torch.ones(1, EMBEDDING))
