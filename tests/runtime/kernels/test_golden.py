"""The kernels against values recorded from the published code."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.cuda_emulation.devices import DEVICES, opened
from tests.golden import load_golden
from tests.runtime.kernels.cases import BOTH, CLIP_MEAN, cropping, kernels, logit, worst
from tests.runtime.kernels.device_module import CudaModule
from vocabseg.runtime.kernels import reference
from vocabseg.runtime.kernels.geometry import expand_boxes, padded_size
from vocabseg.runtime.masks import Masks

each = pytest.mark.parametrize("name", BOTH)
CROP_LIMIT = 1e-4


@pytest.fixture(scope="module", params=[*BOTH, *DEVICES])
def module(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The kernels on the CPU, and those for CUDA on a GPU or emulated."""
    if request.param in BOTH:
        yield kernels(request.param)
    else:
        with opened(request.param) as bench:
            yield CudaModule(bench)


def subsampled(values: np.ndarray, mode: str) -> np.ndarray:
    return values if mode == "full" else values[..., ::7, ::5]


def test_bicubic() -> None:
    arrays, meta = load_golden("e_bicubic")
    for index, (h, w, mode) in enumerate(meta["sizes"]):
        found = reference.bicubic(arrays[f"in_{index}"].astype(np.float32), (224, 224))
        worst(f"{h} x {w}", subsampled(found, mode), arrays[f"out_{index}"], 1e-5)


@pytest.mark.parametrize("index", range(8))
def test_crops(module: Any, index: int) -> None:
    """Validity, boxes and crops of 20 masks; where a golden gives mask probabilities, the logits are made of them."""
    arrays, meta = load_golden("e_crops")
    combo = meta["combos"][index]
    image, threshold = arrays["image"], combo["thr"]
    size = image.shape[:2]
    masks = Masks(logit(arrays["masks"]), size, size, size)
    boxes, areas = module.region_boxes(masks, threshold)
    valid = areas > 0
    np.testing.assert_array_equal(valid, arrays[f"valid_{index}"])
    inside = (arrays["masks"] > np.float32(threshold)).sum(axis=(1, 2))
    np.testing.assert_array_equal(areas, inside)
    np.testing.assert_array_equal(boxes[valid], arrays[f"tight_boxes_{index}"])

    final = expand_boxes(boxes[valid], combo["expand_ratio"], size)
    np.testing.assert_array_equal(final, clipped(arrays[f"expanded_boxes_{index}"], size))
    crop_sizes = np.stack([final[:, 3] - final[:, 1], final[:, 2] - final[:, 0]], axis=1)
    np.testing.assert_array_equal(crop_sizes, arrays[f"crop_hw_{index}"])

    fill = CLIP_MEAN if combo["fill"] == "mean" else np.zeros(3)
    indices = np.flatnonzero(valid).astype(np.int32)
    crops = module.crop_regions(image, masks, final, indices, cropping(224, threshold, combo["matting"], fill))
    worst("crops", crops[:, :, 3::9, 4::9], arrays[f"sub_{index}"], CROP_LIMIT)
    worst("means", crops.mean(axis=(2, 3), dtype=np.float64), arrays[f"sum_{index}"], 1e-5)
    if f"full_{index}" in arrays:
        worst("whole crops", crops[arrays[f"full_idx_{index}"]], arrays[f"full_{index}"], CROP_LIMIT)


def clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    h, w = size
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], [w, h])
    return np.concatenate([low, high], axis=1)


def test_resize(module: Any) -> None:
    arrays, meta = load_golden("e_resize_pad_pos")
    for index, (_, _, size, mode) in enumerate(meta["resize"]):
        _, resized = module.resize_normalize(arrays["image"], size, padded_size(*size, 32), [0] * 3, [1] * 3)
        np.testing.assert_array_equal(resized if mode == "full" else resized[::3, ::3], arrays[f"resized_{index}"])


@each
def test_mask_resampling(name: str) -> None:
    """Logits 24 x 32 -> 96 x 128, cut to 85 x 117, sigmoid, -> 61 x 201."""
    arrays, _ = load_golden("e_resize_pad_pos")
    padded, size = arrays["up"].shape[1:], arrays["crop"].shape[1:]
    for logits, up in zip(arrays["logits"], arrays["up"], strict=True):
        worst("upsampled", reference.upsample(logits, padded, padded), up, 1e-5)
    output = arrays["sigmoid_back"].shape[1:]
    found = kernels(name).resample_masks(Masks(arrays["logits"], padded, size, output))
    worst("probabilities", found, arrays["sigmoid_back"], 1e-6)


def test_weighted_masks(module: Any) -> None:
    arrays, meta = load_golden("e_ensemble")
    size = arrays["mask_logits"].shape[1:]
    masks = Masks(arrays["mask_logits"], size, size, size)
    for case in meta["cases"]:
        probabilities, wanted = arrays[f"prob_{case['index']}"], arrays[f"out_{case['index']}"]
        chosen = masks
        if len(probabilities) != len(masks):
            chosen = masks[np.array(meta["valids"][case["valid"]], bool)]
        if module in map(kernels, BOTH):
            found = module.class_scores(chosen, probabilities)
            worst(f"case {case['index']}", found, wanted, 2e-6)
        labels, scores = module.compose(chosen, probabilities)
        worst("winning scores", scores, wanted.max(axis=0), 2e-6)
        clear = np.sort(wanted, axis=0)[-1] - np.sort(wanted, axis=0)[-2] > 1e-5
        np.testing.assert_array_equal(labels[clear], wanted.argmax(axis=0)[clear])


class NetworkCase:
    def __init__(self) -> None:
        self.arrays, meta = load_golden("c_r50_tiny16_vild")
        self.resized = np.ascontiguousarray(self.arrays["resized_0"].transpose(1, 2, 0))
        sizes = tuple(meta["padded"]), self.resized.shape[:2], self.arrays["argmax_0"].shape
        self.masks = Masks(self.arrays["pred_masks"][0], *sizes)


@pytest.fixture(scope="module")
def network() -> NetworkCase:
    return NetworkCase()


def test_network_resize(module: Any, network: NetworkCase) -> None:
    image, masks = network.arrays["image_0"], network.masks
    _, resized = module.resize_normalize(image, masks.image_size, masks.padded_size, [0] * 3, [1] * 3)
    np.testing.assert_array_equal(resized, network.resized)


def test_network_boxes(module: Any, network: NetworkCase) -> None:
    arrays = network.arrays
    boxes, areas = module.region_boxes(network.masks, 0.5)
    stable = arrays["box_stable_0"]
    valid = arrays["valid_0"]
    np.testing.assert_array_equal((areas > 0)[stable], valid[stable])
    wanted = np.zeros((len(valid), 4), np.int32)
    wanted[valid] = arrays["boxes_0"]
    np.testing.assert_array_equal(boxes[stable], wanted[stable])
    certain = arrays["near_0"][:, 0] == 0  # no pixel so near the threshold that rounding decides
    np.testing.assert_array_equal(areas[certain], arrays["area_0"][certain])
    assert np.abs(areas - arrays["area_0"]).max() <= arrays["near_0"][:, 0].max()


def test_network_crops(module: Any, network: NetworkCase) -> None:
    arrays = network.arrays
    indices = np.flatnonzero(arrays["valid_0"]).astype(np.int32)
    boxes = arrays["boxes_0"].astype(np.int32)
    crops = module.crop_regions(network.resized, network.masks, boxes, indices, cropping(224))
    certain = arrays["near_0"][indices, 0] == 0
    worst("crops", crops[certain][:, :, 5::18, 7::18], arrays["crop_sub_0"][certain], CROP_LIMIT)
    whole = [k for k, region in enumerate(arrays["crop_idx_0"]) if certain[region]]
    assert whole
    worst("whole crops", crops[arrays["crop_idx_0"][whole]], arrays["crop_full_0"][whole], CROP_LIMIT)


@pytest.mark.parametrize("case", ["t_swin_tiny14_mpt", "t_r101c_tiny16_mpt", "t_swin_tiny14_matting_expand_zero"])
def test_mask_prompts(module: Any, case: str) -> None:
    """Crops and patch masks of the published code that takes both; with a patch per pixel, the resized masks too."""
    arrays, meta = load_golden(case)
    clip = meta["model"]["clip_adapter"]
    resized = np.ascontiguousarray(arrays["resized_0"].transpose(1, 2, 0))
    size = resized.shape[:2]
    masks = Masks(arrays["pred_masks"][0], padded_size(*size, 32), size, size)
    fill = CLIP_MEAN if clip["MASK_FILL"] == "mean" else np.zeros(3)
    settings = cropping(224, clip["MASK_THR"], clip["MASK_MATTING"], fill)
    indices = np.flatnonzero(arrays["valid_0"]).astype(np.int32)
    certain = np.flatnonzero(arrays["near_0"][indices, 0] == 0)[:: 1 if module in map(kernels, BOTH) else 4]
    assert len(certain) >= 15
    assert len(indices) == len(arrays["boxes_0"])
    boxes = expand_boxes(arrays["boxes_0"][certain].astype(np.int32), clip["MASK_EXPAND_RATIO"], size)
    cut = boxes, indices[certain], settings
    crops = module.crop_regions(resized, masks, *cut)
    worst("crops", crops[:, :, 5::18, 7::18], arrays["crop_sub_0"][certain], CROP_LIMIT)
    whole = [k for k, region in enumerate(arrays["crop_idx_0"]) if region in certain]
    places = np.searchsorted(certain, arrays["crop_idx_0"][whole])
    worst("whole crops", crops[places], arrays["crop_full_0"][whole], CROP_LIMIT)
    wanted = arrays["patch_mask_0"][certain]
    assert clip["MASK_MATTING"] or 0.2 < wanted.mean() < 0.95
    np.testing.assert_array_equal(module.patch_masks(masks, *cut, wanted.shape[1]), wanted)
    pixels = np.unpackbits(arrays["crop_mask_0"][certain], axis=1, count=224 * 224).reshape(-1, 224, 224)
    np.testing.assert_array_equal(module.patch_masks(masks, *cut, 224), pixels)


def test_network_labels(module: Any, network: NetworkCase) -> None:
    arrays = network.arrays
    arguments = (network.masks, arrays["class_prob_0"])
    labels, scores = module.compose(*arguments)
    clear = arrays["margin_0"] > 1e-4
    assert clear.mean() > 0.85
    assert (labels == arrays["argmax_0"])[clear].mean() >= 0.9999
    worst("winning scores", scores[3::8, 3::8], arrays["scores_0"].max(axis=0), 1e-5)
    if module not in map(kernels, BOTH):
        return  # the kernels for CUDA never have all classes' scores
    class_scores = module.class_scores(*arguments)
    worst("class scores", class_scores[:, 3::8, 3::8], arrays["scores_0"], 1e-5)
    worst("mean scores", class_scores.mean(axis=(1, 2), dtype=np.float64), arrays["score_mean_0"], 1e-5)
