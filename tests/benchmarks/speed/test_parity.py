"""The parity contract: a break planted in one stage is named as that stage, and rounding at thresholds is forgiven."""

from dataclasses import replace

import numpy as np
import pytest

from tests.benchmarks.speed.cases import made_capture
from vocabseg.benchmarks.speed.parity import compare_image, judge
from vocabseg.benchmarks.speed.results import Parity
from vocabseg.benchmarks.speed.variants import Capture
from vocabseg.runtime.bundle.sections import RegionSpec
from vocabseg.runtime.kernels import load_kernels

KERNELS = load_kernels("reference")
REGION = RegionSpec(
    mask_threshold=0.5, mask_fill="mean", expand_ratio=1.0, matting=False, crop_size=16, mean=(0, 0, 0), std=(1, 1, 1)
)


def verdict(expected: Capture, alone: Capture, whole: Capture, precision: str = "float32") -> Parity:
    return judge([compare_image(expected, alone, whole, KERNELS, REGION)], "the other", precision)


def figure(parity: Parity, what: str) -> float:
    return next(check.value for check in parity.checks if what in check.what)


def with_labels(capture: Capture, wrong: int) -> np.ndarray:
    labels = capture.labels.copy()
    labels.ravel()[:wrong] = (labels.ravel()[:wrong] + 1) % 3
    return labels


BREAKS = {
    "resize_normalize": lambda one: {"network_input": one.network_input + 1e-3},
    "proposal": lambda one: {"mask_logits": one.mask_logits + 2e-3},
    "region_boxes": lambda one: {"boxes": one.boxes + np.array([0, 0, 0, 1])},
    "crop_regions": lambda one: {"crops": np.where(np.arange(16) == 7, one.crops + 2e-4, one.crops)},
    "image_encoder": lambda one: {"embeddings": one.embeddings + 0.02 * np.roll(one.embeddings, 1, axis=1)},
    "classify": lambda one: {"probabilities": one.probabilities ** np.float32(1.05)},
    "compose": lambda one: {"labels": with_labels(one, 3)},
}


@pytest.mark.parametrize("stage", BREAKS)
def test_a_break_is_named_by_its_stage(stage: str) -> None:
    expected = made_capture()
    parity = verdict(expected, replace(expected, **BREAKS[stage](expected)), expected)
    assert parity.broken == stage
    assert {check.stage for check in parity.checks if not check.passed} == {stage}


def test_equal_stages_hold() -> None:
    expected = made_capture()
    parity = verdict(expected, expected, expected)
    assert parity.broken is None
    assert figure(parity, "worst cosine") == pytest.approx(1)
    assert figure(parity, "compared one by one") == 3
    assert figure(parity, "pixels that are clear") == 1


def test_the_first_of_several_broken_stages_is_named() -> None:
    expected = made_capture()
    changes = BREAKS["crop_regions"](expected) | BREAKS["classify"](expected)
    assert verdict(expected, replace(expected, **changes), expected).broken == "crop_regions"


def test_a_break_on_the_whole_way_alone_shows_in_the_labels() -> None:
    expected = made_capture()
    assert verdict(expected, expected, replace(expected, labels=with_labels(expected, 3))).broken == "labels"
    # With logits far off, hardly a mask is steady and the labels prove nothing: then the logits themselves tell.
    lost = verdict(expected, expected, replace(expected, mask_logits=expected.mask_logits[::-1]))
    assert lost.broken == "labels"


def test_pixels_without_a_margin_do_not_count() -> None:
    expected = made_capture()
    expected.margin.ravel()[:3] = 1e-5
    parity = verdict(expected, expected, replace(expected, labels=with_labels(expected, 3)))
    assert parity.broken is None
    assert parity.agreement == [pytest.approx(1 - 3 / 2400)]


def test_a_mask_within_rounding_of_the_threshold_is_left_out() -> None:
    expected = made_capture()
    flat = expected.mask_logits.copy()
    flat[1] += np.where(np.abs(flat[1]) < 0.5, -flat[1] + 1e-6, 0)  # whole stretches at probability 0.5
    expected = replace(expected, mask_logits=flat)
    crops = expected.crops.copy()
    crops[1] += 1
    parity = verdict(expected, replace(expected, crops=crops), expected)
    assert parity.broken is None
    assert figure(parity, "left out") == 1
    crops[0] += 1
    assert verdict(expected, replace(expected, crops=crops), expected).broken == "crop_regions"


def test_half_precision_has_its_own_limits() -> None:
    expected = made_capture()
    noisy = replace(
        expected,
        mask_logits=expected.mask_logits + 0.05,
        embeddings=expected.embeddings + 0.01 * np.roll(expected.embeddings, 1, axis=1),
    )
    whole = replace(noisy, labels=with_labels(expected, 10))
    assert verdict(expected, noisy, whole, "float32").broken == "proposal"
    assert verdict(expected, noisy, whole, "bfloat16").broken is None
    assert verdict(expected, noisy, replace(whole, labels=with_labels(expected, 13)), "bfloat16").broken == "labels"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_never_passes(value: float) -> None:
    expected = made_capture()
    broken = expected.mask_logits.copy()
    broken[2, 3, 3] = value
    parity = verdict(expected, replace(expected, mask_logits=broken), expected)
    assert parity.broken == "proposal"
    assert all(np.isfinite(check.value) for check in parity.checks)  # JSON knows no others


def test_no_region_at_all() -> None:
    expected = made_capture()
    empty = replace(
        expected, mask_logits=np.full_like(expected.mask_logits, -5), valid=np.zeros(4, bool),
        boxes=np.zeros((0, 4), np.int32), crops=None, embeddings=None,
    )  # fmt: skip
    parity = verdict(empty, empty, empty)
    assert parity.broken is None
    assert not any(check.stage in ("crop_regions", "image_encoder") for check in parity.checks)
