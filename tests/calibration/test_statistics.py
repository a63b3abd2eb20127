"""Statistics are exact whatever the order, and thresholds find what they are for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocabseg.calibration.graphs.thresholds import METHODS, largest, percentile, squared_error
from vocabseg.calibration.observe.statistics import BINS, Statistics, pack, unpack


def seen(*arrays: np.ndarray, channels: bool = False) -> Statistics:
    found = Statistics()
    for array in arrays:
        found.update(array, channels)
    return found


def same(one: Statistics, other: Statistics) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.randoms())
def test_the_order_of_arrays_changes_nothing(values: list[float], random) -> None:
    arrays = [np.full((2, 3), value, np.float32) for value in values]
    shuffled = list(arrays)
    random.shuffle(shuffled)
    assert same(seen(*arrays, channels=True), seen(*shuffled, channels=True))


def test_a_histogram_is_that_of_its_final_reach() -> None:
    arrays = [np.random.default_rng(seed).normal(0, 4.0**seed, (50, 7)).astype(np.float32) for seed in range(4)]
    found = seen(*arrays)
    together = np.abs(np.concatenate(arrays)).astype(np.float64).ravel()
    assert found.reach == 2 ** np.ceil(np.log2(together.max()))
    expected = np.bincount((together * BINS / found.reach).astype(int), minlength=BINS)
    assert np.array_equal(found.counts, expected)
    assert (found.low, found.high) == (min(a.min() for a in arrays), max(a.max() for a in arrays))


def test_packing_loses_nothing() -> None:
    found = {"a": seen(np.array([[1.0, -3e5, 0.0, 1e-9]], np.float32), channels=True), "b": Statistics()}
    again = unpack(pack(found))
    assert list(again) == ["a", "b"]
    assert all(same(found[name], again[name]) for name in found)


def test_what_is_not_finite_is_counted_apart() -> None:
    found = seen(np.array([0.0, 1e-9, 1e-6, 1.0, np.inf, np.nan], np.float32))
    assert (found.values, found.broken) == (4, 2)
    assert (found.largest, found.smallest) == (1.0, pytest.approx(1e-9))


def test_outliers_are_clipped_where_that_is_better() -> None:
    values = np.random.default_rng(0).normal(0, 1, (6, 100_000)).astype(np.float32)
    values[0, 0] = 100.0
    found = seen(*values)
    assert largest(found) == 100.0
    assert 3.5 < percentile(found) < 4.5
    assert squared_error(found) < 30  # where (100 - t)^2 + 600,000 t^2 / (12 x 127^2) is least: 24.4
    assert METHODS["entropy"](found) < 30
    # Without the outlier nothing of a normal distribution is worth clipping at 3 sigma.
    assert squared_error(seen(*values[1:])) > 3


def test_every_method_keeps_a_uniform_distribution() -> None:
    found = seen(np.random.default_rng(0).uniform(0, 8, 100_000).astype(np.float32))
    for name, method in METHODS.items():
        assert method(found) == pytest.approx(8, rel=0.03), name
