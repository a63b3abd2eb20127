"""The host kernels' variants, one for each instruction set, against each other bit for bit; and how one is chosen."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.kernels.cases import (
    CASES,
    IMAGE_MEAN,
    IMAGE_STD,
    Case,
    cropping,
    random_image,
    random_masks,
    random_probabilities,
)
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels.geometry import padded_size
from vocabseg.runtime.masks import Masks

HOST, REFERENCE = load_kernels("host"), load_kernels("reference")
SIZES = {
    **CASES,
    "published_ratios": Case(9, (40, 60), (160, 240), (160, 239), (107, 160), 40),
    "shrunk_a_lot": Case(3, (60, 90), (240, 360), (233, 350), (20, 31), 5),
}


@pytest.fixture(autouse=True)
def same_variant_afterwards() -> Iterator[None]:
    before = HOST.variant()
    yield
    HOST.choose_variant(before)


def everything(case: Case) -> dict[str, object]:
    """The results of all kernels."""
    masks, image, probabilities = random_masks(11, case), random_image(11, (77, 121)), random_probabilities(11, case)
    resized = random_image(12, case.image_size)
    boxes, areas = HOST.region_boxes(masks, 0.4)
    indices = np.flatnonzero(areas).astype(np.int32)

    def crops(matting: bool) -> np.ndarray:
        return HOST.crop_regions(resized, masks, boxes[indices], indices, cropping(31, 0.4, matting))

    return {
        "resize": HOST.resize_normalize(image, case.image_size, case.padded_size, IMAGE_MEAN, IMAGE_STD),
        "boxes": (boxes, areas),
        "crops": crops(False),
        "matted crops": crops(True),
        "compose": HOST.compose(masks, probabilities),
        "scores": HOST.class_scores(masks, probabilities),
        "probabilities": HOST.resample_masks(masks),
    }


@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES.keys())
def test_every_variant_gives_the_same_bits(case: Case) -> None:
    HOST.choose_variant(HOST.variants()[0])
    wanted = everything(case)
    for name in HOST.variants()[1:]:
        HOST.choose_variant(name)
        found = everything(case)
        for kernel in wanted:
            np.testing.assert_equal(found[kernel], wanted[kernel], err_msg=f"{kernel} of {name}")


def test_the_best_variant_is_the_default() -> None:
    code = "from vocabseg.runtime.kernels import load_kernels; print(load_kernels().variant())"
    run = in_a_new_process(code, None)
    assert run.stdout.strip() == HOST.variants()[-1]


def in_a_new_process(code: str, variant: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "VOCABSEG_ISA"}
    if variant is not None:
        environment["VOCABSEG_ISA"] = variant
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_environment_chooses() -> None:
    code = "from vocabseg.runtime.kernels import load_kernels; print(load_kernels().variant())"
    oldest = HOST.variants()[0]
    assert in_a_new_process(code, oldest).stdout.strip() == oldest
    last_line = in_a_new_process(code, "v9").stderr.strip().splitlines()[-1]
    assert "EngineError: no kernels for the instruction set 'v9': choose one of " in last_line
    assert ", ".join(HOST.variants()) in last_line


def test_choosing_a_variant() -> None:
    for name in HOST.variants():
        HOST.choose_variant(name)
        assert HOST.variant() == name
    with pytest.raises(EngineError, match="no kernels for the instruction set 'sse'"):
        HOST.choose_variant("sse")
    assert HOST.variant() == HOST.variants()[-1]


def smooth_masks(seed: int, count: int, size: tuple[int, int]) -> np.ndarray:
    """Large areas where the same few masks are high, which leaves few classes that can win there."""
    noise = np.random.default_rng(seed).normal(-2, 12, (count, 4, 5)).astype(np.float32)
    return np.stack([cv2.resize(mask, size[::-1], interpolation=cv2.INTER_CUBIC) for mask in noise])


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p,
        lambda p: np.concatenate([p, p], axis=1),  # every class twice: the first of equals wins
        lambda p: np.where(p > 0.9, p, 0).astype(np.float32),  # many classes of score 0
        lambda p: np.zeros_like(p),
        lambda p: p - np.float32(0.02),  # negative ones, for which no bound holds
        lambda p: np.nextafter(np.repeat(p[:, :3], 50, axis=1), np.arange(150, dtype=np.float32)),  # nearly equal
    ],
    ids=["decided", "twice", "sparse", "zeros", "negative", "nearly_equal"],
)
@pytest.mark.parametrize("variant", HOST.variants())
def test_classes_left_out_never_win(change: Callable[[np.ndarray], np.ndarray], variant: str) -> None:
    """compose computes only the classes that can win; class_scores computes all."""
    HOST.choose_variant(variant)
    masks = Masks(smooth_masks(1, 24, (40, 60)), (160, 240), (157, 240), (105, 161))
    probabilities = np.random.default_rng(2).dirichlet(np.full(150, 0.02), 24).astype(np.float32)
    arguments = (masks, np.ascontiguousarray(change(probabilities)))
    labels, best = HOST.compose(*arguments)
    scores = HOST.class_scores(*arguments)
    np.testing.assert_array_equal(best, scores.max(axis=0))
    np.testing.assert_array_equal(labels, scores.argmax(axis=0))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12), st.floats(-3, 80, width=32)), max_size=3),
    st.sampled_from([(36, 52), (20, 27), (9, 13)]),
    st.sampled_from([0.2, 0.5, 0.9]),
)
def test_lone_peaks_have_the_specified_box(
    peaks: list[tuple[int, int, float]], full: tuple[int, int], threshold: float
) -> None:
    """Only the surroundings of high logits are upsampled: nothing inside may lie beyond them."""
    logits = np.full((1, 9, 13), -6, np.float32)
    for y, x, value in peaks:
        logits[0, y, x] = value
    masks = Masks(logits, padded_size(*full, 4), full, full)
    np.testing.assert_equal(HOST.region_boxes(masks, threshold), REFERENCE.region_boxes(masks, threshold))
