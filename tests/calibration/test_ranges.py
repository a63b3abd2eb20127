"""Ranges over images: bounded memory, and a stopped run that goes on."""

from pathlib import Path

import numpy as np
import pytest

from tests.calibration import planted
from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.calibration.observe.tensor_observer import TensorObserver, float_tensors
from vocabseg.calibration.samples import ranges
from vocabseg.calibration.samples.calibration_images import choose_images
from vocabseg.calibration.samples.ranges import Ranges, observe
from vocabseg.runtime.bundle.folder import open_bundle


def same(one: Ranges, other: Ranges) -> bool:
    if {graph: set(found) for graph, found in one.items()} != {graph: set(found) for graph, found in other.items()}:
        return False
    return all(
        np.array_equal(getattr(one[graph][tensor], name), getattr(other[graph][tensor], name))
        for graph in one
        for tensor in one[graph]
        for name in Statistics.__dataclass_fields__
    )


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, images = open_bundle(None), choose_images(None, 32, 0, print)[0][:6]
    monkeypatch.setattr(ranges, "WIDE", 2)
    undisturbed = observe(bundle, images, 0)
    read: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        read.append(what)
        if what == "looking at images" and done == 4:
            raise Stopped

    state = tmp_path / "ranges.npz"
    with pytest.raises(Stopped):
        observe(bundle, images, 0, state, stop, save_every=2)
    told: list[str] = []
    looked: list[int] = []
    resumed = observe(
        bundle, images, 0, state, lambda what, done, total: looked.append(done), told.append, save_every=2
    )
    assert told == ["the ranges of 4 images are known already: going on from there"]
    assert min(looked) == 4
    assert same(resumed, undisturbed)
    # Another seed cuts other regions: nothing of the old run may stay.
    observe(bundle, images[:1], 1, state, notify=told.append)
    assert "starting again" in told[-1]
    state.write_bytes(b"no archive")
    observe(bundle, images[:1], 0, state, notify=told.append)
    assert "cannot be read" in told[-1]


def test_memory_is_bounded_and_changes_nothing(tmp_path: Path) -> None:
    path = planted.tiny_scores(tmp_path / "planted.onnx")
    names = ["x", *float_tensors(path)]
    feeds = planted.feeds(3, 3)
    whole: dict[str, Statistics] = {}
    TensorObserver(path, names, names).observe(feeds, whole)
    narrow: dict[str, Statistics] = {}
    TensorObserver(path, names, names, memory=3 * 4 * planted.WIDTH**2).observe(feeds, narrow)
    assert list(whole) == list(narrow) == names
    for name in names:
        assert np.allclose(whole[name].high, narrow[name].high, rtol=1e-5)
        assert whole[name].values == narrow[name].values
        assert np.allclose(whole[name].channels, narrow[name].channels, rtol=1e-5)
