"""The kernels against what they imitate: Pillow's resize bit for bit, torch's interpolate to rounding."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.kernels.cases import BOTH, IMAGE_MEAN, IMAGE_STD, kernels, random_image, worst
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels import reference as REFERENCE
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.kernels.geometry import padded_size
from vocabseg.runtime.masks import Masks

HOST = load_kernels("host")
side = st.integers(1, 90)
# torch rounds the position of a pixel once or twice, as its build and the layout have it: 4e-6 of a pixel at most here,
# times differences of up to 20 between neighbouring logits.
LINEAR_LIMIT = 1e-4


def pillow_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rows, then columns: one axis at a time, because Pillow chooses the order by the sizes from version 13 on."""
    narrow = Image.fromarray(image).resize((size[1], image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(narrow.resize((size[1], size[0]), Image.Resampling.BILINEAR))


@settings(max_examples=80, deadline=None)
@given(side, side, side, side, st.integers(0, 2**31))
@example(1, 1, 64, 64, 0)
@example(64, 64, 1, 1, 0)
@example(90, 1, 1, 90, 0)
@example(1, 1000, 3, 7, 0)
def test_resize_equals_pillow(h: int, w: int, out_h: int, out_w: int, seed: int) -> None:
    image = random_image(seed, (h, w))
    wanted = pillow_resize(image, (out_h, out_w))
    padded = padded_size(out_h, out_w, 32)
    normalised = (wanted.astype(np.float32) - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
    for name in BOTH:
        network_input, resized = kernels(name).resize_normalize(image, (out_h, out_w), padded, IMAGE_MEAN, IMAGE_STD)
        np.testing.assert_array_equal(resized, wanted, err_msg=name)
        np.testing.assert_array_equal(network_input[0, :, :out_h, :out_w], normalised.transpose(2, 0, 1), err_msg=name)
        network_input[0, :, :out_h, :out_w] = 0
        assert network_input.shape == (1, 3, *padded)
        assert not network_input.any(), name


@pytest.mark.parametrize(
    ("size", "out"), [((427, 640), (640, 959)), ((1500, 2000), (640, 853)), ((301, 4000), (48, 640))]
)
def test_photo_sizes_equal_pillow(size: tuple[int, int], out: tuple[int, int]) -> None:
    image = random_image(9, size)
    wanted = np.asarray(Image.fromarray(image).resize((out[1], out[0]), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pillow_resize(image, out), wanted)
    np.testing.assert_array_equal(HOST.resize_normalize(image, out, out, IMAGE_MEAN, IMAGE_STD)[1], wanted)


@settings(max_examples=40, deadline=None)
@given(side, side, side, side)
@example(1, 1, 1, 1)
@example(8, 1, 1, 33)
def test_upsampling_is_torch_bilinear(h: int, w: int, out_h: int, out_w: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare interpolation with")
    maps = np.random.default_rng(h * 100 + w).normal(0, 3, (2, h, w)).astype(np.float32)
    interpolate = torch.nn.functional.interpolate

    def resize(x: object, size: tuple[int, int]) -> object:
        return interpolate(x, size=size, mode="bilinear", align_corners=False)

    tensor = torch.from_numpy(maps)[None]
    wide = resize(tensor, (out_h, out_w))[0].numpy()
    for index in range(2):
        worst("bilinear", REFERENCE.upsample(maps[index], (out_h, out_w), (out_h, out_w)), wide[index], LINEAR_LIMIT)
    kept = (max(out_h - 3, 1), max(out_w - 5, 1))
    probabilities = torch.sigmoid(resize(tensor, (out_h, out_w))[..., : kept[0], : kept[1]])
    found = HOST.resample_masks(Masks(maps, (out_h, out_w), kept, (h, w)))
    worst("mask probabilities", found, resize(probabilities, (h, w))[0].numpy(), LINEAR_LIMIT)


@settings(max_examples=40, deadline=None)
@given(side, side, st.sampled_from([1, 7, 64, 224]))
@example(1, 1, 224)
@example(2, 900, 224)
@example(1, 1, 1)
def test_crops_are_torch_bicubic(h: int, w: int, crop: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare interpolation with")
    image = random_image(h * 1000 + w, (h, w))
    values = torch.from_numpy((image.astype(np.float32) - 128) / 64).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(values, size=(crop, crop), mode="bicubic", align_corners=False).numpy()
    everything = Masks(np.full((1, 1, 1), 40, np.float32), (h, w), (h, w), (h, w))
    cropping = Cropping(0.5, False, np.zeros(3), np.full(3, 128), np.full(3, 64), crop)
    box, index = np.array([[0, 0, w, h]], np.int32), np.zeros(1, np.int32)
    for name in BOTH:
        found = kernels(name).crop_regions(image, everything, box, index, cropping)
        worst(name, found, wanted, 1e-5)
