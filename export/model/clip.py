"""CLIP models from a published checkpoint's tensors or from open_clip by name, as traceable image and text towers."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from vocabseg.export.model.attention import rewrite_attention
from vocabseg.export.model.towers import TextTower, image_tower
from vocabseg.export.other_tokenizer import OtherTokenizer
from vocabseg.runtime.errors import CheckpointError

Colour = tuple[float, float, float]

# The published preprocessing of OpenAI's CLIP; RGB, 0..1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64

LISTED = 8  # keys named in an error; the others are counted

# In OpenAI's archives beside the weights; they only repeat sizes.
_SIZES = ("input_resolution", "context_length", "vocab_size")
# In open_clip's archives, too: the causal mask, which a model makes itself.
NO_WEIGHTS = (*_SIZES, "attn_mask", "text.attn_mask")
MASK_PROMPTS = "visual.mask_embedding"


class ClipModel:
    """A CLIP model in float32: its towers, its sizes, and the mean and std (RGB, 0..1) its image encoder expects.

    `mask_prompts` (depth, patches or 1, width) are learned tokens for the patches that a region leaves free, or None.
    `tokenizer` is None for one with CLIP's own.
    """

    def __init__(
        self,
        module: Any,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        mask_prompts: Tensor | None = None,
        tokenizer: OtherTokenizer | None = None,
    ):
        self.tokenizer = tokenizer
        self.module = module.eval().requires_grad_(False)
        self.mask_prompts = mask_prompts
        rewrite_attention(module)
        self.mean, self.std = (cast(Colour, tuple(values)) for values in (mean, std))
        # open_clip keeps the text encoder either in `text` or in the model itself.
        self._text = getattr(module, "text", module)
        size = module.visual.image_size
        self.image_size: int = size if isinstance(size, int) else size[0]
        self.context_length: int = self._text.positional_embedding.shape[0]
        self.vocab_size: int = self._text.token_embedding.weight.shape[0]
        self.embed_dim: int = _text_dimension(self._text)

    @property
    def activation(self) -> str:
        """Of the text encoder, and so of an image encoder in CLIP's own form: "quick_gelu" or "gelu"."""
        return "quick_gelu" if any(type(part).__name__ == "QuickGELU" for part in self._text.modules()) else "gelu"

    @property
    def patch_grid(self) -> int:
        """Patches along a side of the patch mask that the image tower takes beside the crops; 0 where it takes none."""
        return 0 if self.mask_prompts is None else self.module.visual.grid_size[0]

    @property
    def token_embedding(self) -> Tensor:
        """The embedding table (vocabulary size, width), without rows for learned prompts."""
        return self._text.token_embedding.weight

    @cached_property
    def image_tower(self) -> nn.Module:
        """crops (batch, 3, S, S) float32, S the native image size -> features (batch, D), not normalised."""
        return self.make_image_tower()

    @cached_property
    def text_tower(self) -> nn.Module:
        """token_ids (batch, context) int64, eot_index (batch,) int64 -> features (batch, D), not normalised."""
        return self.make_text_tower()

    def make_image_tower(self, crop_size: int | None = None) -> nn.Module:
        """The image tower for crops of another size; the position embedding is resized once, here.

        Raises ConfigurationError for a size the encoder cannot take.
        """
        return image_tower(self.module.visual, crop_size or self.image_size, self.mask_prompts)

    def make_text_tower(self, extra_rows: Tensor | None = None) -> nn.Module:
        """The text tower with `extra_rows` (rows, width) of learned prompts appended to the embedding table."""
        causal = getattr(self._text, "attn_mask", None) is not None
        return TextTower(self._text, causal, extra_rows).eval()


def is_openai_archive(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of one of OpenAI's archives."""
    return all(name in tensors for name in _SIZES)


def build_clip(state_dict: Mapping[str, Tensor], quick_gelu: bool = True) -> ClipModel:
    """A CLIP model from a state dict in OpenAI's layout (`visual.*`, `transformer.*`, ...).

    Sizes are read off the tensors; weights become float32. `quick_gelu`: trained with OpenAI's approximation of GELU.
    Raises CheckpointError for missing, extra or misshapen keys.
    """
    from open_clip.model import CLIP

    tensors = {key: value for key, value in state_dict.items() if key not in NO_WEIGHTS}
    try:
        sizes = _read_sizes(tensors)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"no CLIP weights in OpenAI's layout: cannot read the sizes ({error}); give a full checkpoint"
        ) from None
    with torch.device("meta"):
        module = CLIP(**sizes, quick_gelu=quick_gelu)
    prompts = take_mask_prompts(tensors, module.visual)
    load_weights(module, tensors)
    return ClipModel(module, mask_prompts=prompts)


def _read_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `open_clip.model.CLIP` for these tensors."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision: dict[str, Any]
    if "visual.proj" in tensors:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        grid = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        vision = {
            "layers": _count(tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
            "width": width,
            "patch_size": patch,
            "image_size": patch * grid,
            "mlp_ratio": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        }
    else:
        grid = round((tensors["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        vision = {
            "layers": tuple(_count(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)),
            "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
            "image_size": 32 * grid,
        }
    width = tensors["ln_final.weight"].shape[0]
    text = {
        "context_length": tensors["positional_embedding"].shape[0],
        "vocab_size": tensors["token_embedding.weight"].shape[0],
        "width": width,
        "heads": width // HEAD_WIDTH,
        "layers": _count(tensors, r"transformer\.resblocks\.(\d+)\."),
        "mlp_ratio": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
    }
    return {
        "embed_dim": tensors["text_projection"].shape[1],
        "vision_cfg": CLIPVisionCfg(**vision, head_width=HEAD_WIDTH),
        "text_cfg": CLIPTextCfg(**text),
    }


def take_mask_prompts(tensors: dict[str, Tensor], visual: Any) -> Tensor | None:
    """The mask prompts, float32, of a vision transformer, taken out of `tensors`; None if there are none."""
    from open_clip.transformer import VisionTransformer

    if MASK_PROMPTS not in tensors or not isinstance(visual, VisionTransformer):
        return None
    prompts = tensors.pop(MASK_PROMPTS).float()
    depth, patches, width = visual.transformer.layers, len(visual.positional_embedding) - 1, visual.transformer.width
    if prompts.ndim != 3 or not (
        1 <= len(prompts) <= depth and prompts.shape[1] in (1, patches) and prompts.shape[2] == width
    ):
        raise CheckpointError(
            f"{MASK_PROMPTS} is {'x'.join(map(str, prompts.shape))}, not 1 to {depth} times {patches} (or 1) times "
            f"{width}: give the checkpoint that it belongs to"
        )
    return prompts


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in tensors if (match := re.match(pattern, key))})


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a module strictly; weights become float32. Raises CheckpointError for missing, extra or misshapen keys."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: value if "num_batches_tracked" in key else value.float() for key, value in tensors.items()}
    for key in wanted:
        if key.endswith("num_batches_tracked"):  # counts training steps; no number depends on it
            found.setdefault(key, torch.zeros((), dtype=torch.int64))
    missing = [f"missing {key}" for key in wanted if key not in found]
    unknown = [f"unknown {key}" for key in found if key not in wanted]
    misshapen = [
        f"{key} is {tuple(found[key].shape)}, expected {shape}"
        for key, shape in wanted.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    if missing or unknown or misshapen:
        count = len(missing) + len(unknown) + len(misshapen)
        raise CheckpointError(f"CLIP weights do not fit ({count} keys): {list_problems(missing, unknown, misshapen)}")
    module.load_state_dict(found, strict=True, assign=True)


def list_problems(*kinds: Sequence[str]) -> str:
    """Some problems of each kind, so that none hides the others, and how many more there are."""
    share = LISTED // max(sum(map(bool, kinds)), 1)
    shown = [problem for kind in kinds for problem in kind[:share]]
    more = sum(map(len, kinds)) - len(shown)
    return "; ".join(shown) + (f" and {more} more" if more else "")


def _text_dimension(text: Any) -> int:
    projection = text.text_projection
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return projection.shape[1] if projection is not None else text.token_embedding.weight.shape[1]
