"""Sizes and boxes against recorded values and their own properties."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.golden import load_golden
from vocabseg.runtime.kernels.geometry import expand_boxes, padded_size, resized_size

side = st.integers(1, 3000)


def test_sizes_of_the_published_code() -> None:
    arrays, _ = load_golden("e_resize_pad_pos")
    for h, w, min_size, max_size, wanted_h, wanted_w in arrays["shapes"].tolist():
        # The published code rounds a side to 0 in two of these, and fails then.
        wanted = (max(wanted_h, 1), max(wanted_w, 1))
        assert resized_size(h, w, min_size, max_size) == wanted, (h, w, min_size, max_size)


@given(side, side, st.integers(1, 1024), st.integers(1, 2560))
@example(1, 3000, 640, 2560)
def test_resized_size_keeps_its_bounds(h: int, w: int, min_size: int, max_size: int) -> None:
    new_h, new_w = resized_size(h, w, min_size, max_size)
    assert 1 <= min(new_h, new_w) <= min_size
    assert max(new_h, new_w) <= max_size
    assert min(new_h, new_w) == min_size or max(new_h, new_w) == max_size
    assert (new_h <= new_w) == (h <= w) or new_h == new_w


def test_very_long_images_keep_a_pixel() -> None:
    assert resized_size(1, 100_000, 640, 2560) == (1, 2560)


@given(side, side, st.integers(1, 64))
def test_padding_is_the_next_multiple(h: int, w: int, divisor: int) -> None:
    for size, padded in zip((h, w), padded_size(h, w, divisor), strict=True):
        assert padded % divisor == 0
        assert 0 <= padded - size < divisor


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="image 0 x 5, min_size 640"):
        resized_size(0, 5, 640, 2560)
    with pytest.raises(ValueError, match="divisor is 0"):
        padded_size(4, 4, 0)


def test_expansion_truncates_toward_zero_before_clipping() -> None:
    boxes = np.array([[10, 10, 15, 13], [0, 0, 3, 3], [95, 40, 100, 50]], np.int32)
    # [10, 15] doubled is [7.5, 17.5]; [0, 3] doubled is [-1.5, 4.5]; [95, 100] doubled is [92.5, 102.5]
    assert expand_boxes(boxes, 2.0, (50, 100)).tolist() == [[7, 8, 17, 14], [0, 0, 4, 4], [92, 35, 100, 50]]


@pytest.mark.parametrize("index", range(8))
def test_expansion_of_the_published_code(index: int) -> None:
    arrays, meta = load_golden("e_crops")
    h, w = arrays["image"].shape[:2]
    found = expand_boxes(arrays[f"tight_boxes_{index}"].astype(np.int32), meta["combos"][index]["expand_ratio"], (h, w))
    wanted = np.clip(arrays[f"expanded_boxes_{index}"], 0, [w, h, w, h])
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.int32


@given(st.integers(1, 200), st.integers(1, 200), st.floats(0, 4, width=32), st.data())
def test_boxes_stay_in_the_image_and_keep_a_pixel(h: int, w: int, ratio: float, data: st.DataObject) -> None:
    x1, y1 = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    box = [x1, y1, data.draw(st.integers(x1 + 1, w)), data.draw(st.integers(y1 + 1, h))]
    (left, top, right, bottom), *rest = expand_boxes(np.array([box], np.int32), ratio, (h, w)).tolist()
    assert not rest
    assert 0 <= left < right <= w
    assert 0 <= top < bottom <= h
    if ratio == 1:
        assert [left, top, right, bottom] == box


def test_no_boxes() -> None:
    assert expand_boxes(np.empty((0, 4), np.int32), 1.5, (5, 5)).shape == (0, 4)
