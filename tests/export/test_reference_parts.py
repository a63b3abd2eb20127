"""Single steps of the reference against the published code's functions."""

import zlib
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.golden import load_golden
from tests.parity import check_close
from tests.reference_cases import shapes
from vocabseg.export import reference
from vocabseg.export.checkpoint.load import LearnedPrompt
from vocabseg.export.checkpoint.random_weights import fill
from vocabseg.export.configuration import load_configuration
from vocabseg.export.model.clip import ClipModel, build_clip
from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.text.prompts import PROMPTS

PUBLISHED = load_configuration("zsseg-r50-vitb16-vild")


@cache
def clip(case: str, prefix: str = "clip_adapter.clip_model.") -> ClipModel:
    wanted = {key: shape for key, shape in shapes(case).items() if key.startswith(prefix)}
    return build_clip({key.removeprefix(prefix): torch.from_numpy(array) for key, array in fill(wanted).items()})


def learned(prefix: int, suffix: int, width: int = 128) -> LearnedPrompt:
    lengths = {"prefix_prompt": prefix, "suffix_prompt": suffix}
    drawn = fill({f"clip_adapter.prompt_learner.{name}": (length, width) for name, length in lengths.items()})
    return LearnedPrompt(*(torch.from_numpy(array) for array in drawn.values()))


@pytest.mark.parametrize("prompt", ["single", "vild", "imagenet"])
def test_text_with_templates(prompt: str) -> None:
    golden, meta = load_golden("e_text_and_clip")
    with torch.inference_mode():
        found = reference.embed_names(meta["names"], clip("c_r50_tiny16_vild"), prompt, None)
    check_close(prompt, found.numpy(), golden[f"feat_{prompt}"], 1e-5)
    assert list(PROMPTS[prompt]) == meta[prompt]


def test_templates_of_ones_own() -> None:
    model = clip("c_r50_tiny16_vild")
    with torch.inference_mode():
        named = reference.embed_names(["cat", "dog"], model, "single", None)
        own = reference.embed_names(["cat", "dog"], model, ["a sculpture of a {}."], None)
    assert torch.equal(own, named)


@pytest.mark.parametrize(("prefix", "suffix"), [(16, 0), (4, 3), (0, 0), (0, 2)])
def test_text_with_a_learned_prompt(prefix: int, suffix: int) -> None:
    golden, meta = load_golden("e_text_and_clip")
    with torch.inference_mode():
        found = reference.embed_names(meta["names"], clip("c_r50_tiny16_vild"), "learned", learned(prefix, suffix))
    check_close("learned prompt", found.numpy(), golden[f"feat_learn_{prefix}_{suffix}"], 1e-5)


def golden_crops() -> Tensor:
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(b"img")))
    return torch.from_numpy(generator.standard_normal((3, 3, 224, 224)).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "case", "prefix"),
    [
        ("visual_feat", "c_r50_tiny16_vild", "clip_adapter.clip_model."),
        ("rn_visual_feat", "c3_r50_tinyrn_learn_suffix", "clip_adapter.clip_model."),
        ("v32_visual_feat", "d_separate_diff_clip", "_region_clip_adapter.clip_model."),
    ],
)
def test_crops_of_the_native_size(name: str, case: str, prefix: str) -> None:
    golden, _ = load_golden("e_text_and_clip")
    with torch.inference_mode():
        found = clip(case, prefix).image_tower(golden_crops())
    check_close(name, found.numpy(), golden[name], 1e-5)


def test_crops_of_another_size() -> None:
    """The golden's 96 x 160 has no square tower, so its position embedding is put into one."""
    golden, _ = load_golden("e_text_and_clip")
    tower: Any = clip("c_r50_tiny16_vild").make_image_tower(224)
    spatial = tower.position[1:].T.reshape(1, -1, 14, 14)
    spatial = functional.interpolate(spatial, size=(6, 10), mode="bicubic", align_corners=False)
    tower.position = torch.cat([tower.position[:1], spatial.flatten(2)[0].T])
    with torch.inference_mode():
        found = tower(golden_crops()[:, :, :96, :160])
    check_close("96 x 160", found.numpy(), golden["visual_feat_96x160"], 1e-5)


@pytest.mark.slow
def test_clip_of_published_size() -> None:
    golden, meta = load_golden("e_text_and_clip")
    model = clip("a_r50_vitb16_vild")
    with torch.inference_mode():
        text = reference.embed_names(meta["big_names"], model, "single", None)
        image = model.image_tower(golden_crops())
    check_close("text", text.numpy(), golden["big_single"], 1e-5)
    check_close("image", image.numpy(), golden["big_visual_feat"], 2e-4)


def test_ensemble() -> None:
    golden, meta = load_golden("e_ensemble")
    query, region = torch.from_numpy(golden["query_logits"]), torch.from_numpy(golden["clip_logits"])
    masks = torch.from_numpy(golden["mask_logits"]).sigmoid()
    for case in meta["cases"]:
        valid = torch.tensor(meta["valids"][case["valid"]], dtype=torch.bool)
        seen = meta["flag"] if case["trained"] else None
        found = reference.combine(query, region[valid][:, :-1], valid, seen, case["weight"])
        check_close(str(case), found.numpy(), golden[f"prob_{case['index']}"], 1e-6)
        voters = masks if case["weight"] > 0 else masks[valid]
        scores = torch.einsum("qc,qhw->chw", found, voters)
        check_close(str(case), scores.numpy(), golden[f"out_{case['index']}"], 1e-5)


def test_crops() -> None:
    golden, meta = load_golden("e_crops")
    picture = torch.from_numpy(golden["image"]).permute(2, 0, 1).float()
    probabilities = torch.from_numpy(golden["masks"])
    model = clip("c_r50_tiny16_vild")
    for case in meta["combos"]:
        i = case["index"]
        settings = load_configuration(
            PUBLISHED.name,
            [
                f"region.mask_threshold={case['thr']}",
                f"region.mask_fill={case['fill']}",
                f"region.expand_ratio={case['expand_ratio']}",
                f"region.matting={str(case['matting']).lower()}",
            ],
        ).region
        binary = probabilities > settings.mask_threshold
        valid = binary.flatten(1).any(dim=1)
        np.testing.assert_array_equal(valid.numpy(), golden[f"valid_{i}"])
        boxes = reference.tight_boxes(binary[valid])
        np.testing.assert_array_equal(boxes.numpy(), golden[f"tight_boxes_{i}"])
        masks = probabilities[valid] if settings.matting else binary[valid].float()
        cuts = reference.cut_regions(picture, masks, boxes, settings, model)
        np.testing.assert_array_equal([cut.shape[1:] for cut in cuts], golden[f"crop_hw_{i}"])
        crops = torch.cat(
            [functional.interpolate(cut[None], size=(224, 224), mode="bicubic", align_corners=False) for cut in cuts]
        )
        check_close(str(case), crops[:, :, 3::9, 4::9].numpy(), golden[f"sub_{i}"], 1e-5)
        if f"full_{i}" in golden:
            check_close(str(case), crops[golden[f"full_idx_{i}"]].numpy(), golden[f"full_{i}"], 1e-5)


def test_resizing() -> None:
    golden, meta = load_golden("e_resize_pad_pos")
    for index, (min_size, max_size, size, part) in enumerate(meta["resize"]):
        settings = load_configuration(
            PUBLISHED.name, [f"input.min_size={min_size}", f"input.max_size={max_size}"]
        ).input
        found = reference.resize_shortest_edge(golden["image"], settings)
        assert list(found.shape[:2]) == size
        np.testing.assert_array_equal(found if part == "full" else found[::3, ::3], golden[f"resized_{index}"])


def test_sizes_of_resized_images() -> None:
    golden, _ = load_golden("e_resize_pad_pos")
    for height, width, min_size, max_size, h, w in golden["shapes"].tolist():
        settings = load_configuration(
            PUBLISHED.name, [f"input.min_size={min_size}", f"input.max_size={max_size}"]
        ).input
        assert reference.resized_size(height, width, settings) == (h, w)


def test_padding_and_masks() -> None:
    golden, _ = load_golden("e_resize_pad_pos")
    logits, image_size = torch.from_numpy(golden["logits"]), golden["crop"].shape[1:]
    masks = reference.upsample_masks(logits, golden["up"].shape[1:], image_size)
    check_close("masks", masks.numpy(), torch.from_numpy(golden["crop"]).sigmoid().numpy(), 1e-6)
    back = golden["sigmoid_back"].shape[1:]
    small = functional.interpolate(masks[None], size=back, mode="bilinear", align_corners=False)[0]
    check_close("masks at another size", small.numpy(), golden["sigmoid_back"], 1e-6)


def test_too_long_name() -> None:
    with pytest.raises(VocabularyError, match=r"takes 20[0-9] tokens"):
        reference.embed_names(["dog " * 200], clip("c_r50_tiny16_vild"), "single", None)
