"""Recorded submissions: replayed, they do what the work itself would do, and they keep neither memory nor failures."""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest

from tests.cuda_emulation.devices import DEVICES, Bench, opened
from tests.runtime.kernels.cases import IMAGE_MEAN, IMAGE_STD, Case, kernels, random_image, random_masks
from vocabseg.runtime.cuda.recordings import Recordings
from vocabseg.runtime.cuda.streams import Stream, Submissions
from vocabseg.runtime.errors import EngineError

HOST = kernels("host")


@pytest.fixture(params=DEVICES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with opened(request.param, seed=3) as found:
        yield found


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Submissions]:
    """What was replayed so far."""
    found: list[Submissions] = []
    replay = Stream.replay
    monkeypatch.setattr(Stream, "replay", lambda stream, calls: (found.append(calls), replay(stream, calls)))
    return found


def test_recurring_and_alternating_sizes(bench: Bench, replayed: list[Submissions]) -> None:
    recordings = Recordings(lambda: bench.kernels.state)
    sizes = {(41, 33): ((20, 16), (32, 32)), (17, 50): ((30, 64), (32, 64))}
    arrays = {
        size: [bench.new(shape, dtype) for shape, dtype in (
            ((*size, 3), np.uint8), ((*small, 3), np.uint8), ((1, 3, *padded), np.float32)
        )]
        for size, (small, padded) in sizes.items()
    }  # fmt: skip
    for turn, size in enumerate([*sizes] * 4):
        pixels, (image, resized, network_input) = random_image(turn, size), arrays[size]
        bench.stream.upload(image, pixels)
        given = (image, IMAGE_MEAN, IMAGE_STD, network_input, resized, bench.stream)
        used = (image, resized, network_input, None)
        recordings.run("resize", bench.stream, used, (), lambda given=given: bench.kernels.resize_normalize(*given))
        wanted, small = HOST.resize_normalize(pixels, *sizes[size], IMAGE_MEAN, IMAGE_STD)
        np.testing.assert_array_equal(bench.down(resized), small)
        np.testing.assert_array_equal(bench.down(network_input), wanted)
    assert [len(calls) for calls in replayed] == [1] * 4  # the first turn computed tables, the second was recorded
    assert len(recordings) == 2


def test_a_replaced_workspace_makes_recordings_void(bench: Bench, replayed: list[Submissions]) -> None:
    case = Case(3, (4, 4), (16, 16), (16, 16), (9, 11), 5)
    recordings = Recordings(lambda: bench.kernels.state)
    masks = random_masks(1, case)
    on_device = case.masks(bench.up(masks.logits))
    labels, scores = bench.device.together((case.output_size, np.int32), (case.output_size, np.float32))
    tables = {classes: np.random.default_rng(2).random((3, classes), np.float32) for classes in (5, 10_000)}
    uploaded = {classes: bench.up(table) for classes, table in tables.items()}

    def compose(classes: int) -> None:
        probabilities, given = tables[classes], uploaded[classes]
        for _ in range(3):
            recordings.run(
                "compose", bench.stream, (given, labels), (),
                lambda: bench.kernels.compose(on_device, given, None, None, labels, scores, bench.stream),
            )  # fmt: skip
            found, expected = bench.down(labels), HOST.compose(masks, probabilities)[0]
            assert (found == expected).mean() > 0.98
            bench.stream.fill(labels, 0)

    compose(5)
    assert (len(recordings), len(replayed)) == (1, 1)  # the first turn allocated the workspace
    before = bench.kernels.state
    compose(10_000)
    assert bench.kernels.state[0] == before[0] + 1
    assert (len(recordings), len(replayed)) == (2, 2)
    compose(5)
    assert (len(recordings), len(replayed)) == (3, 4)


def test_work_that_fails_is_not_recorded(bench: Bench, replayed: list[Submissions]) -> None:
    recordings, stream = Recordings(lambda: (0, 0)), bench.stream
    first, second = bench.device.together(((4,), np.uint8), ((4,), np.uint8))
    turns = iter([True, True, False])

    def work() -> None:
        stream.fill(first, 1)
        if next(turns):
            raise EngineError("no")
        stream.fill(second, 2)

    for fails in (True, True, False, False, False):
        stream.fill(first, 9)
        stream.fill(second, 9)
        with pytest.raises(EngineError) if fails else nullcontext():
            recordings.run("fill", stream, (first, second), (), work)
        assert bench.down(first).tolist() == [1] * 4
        assert bench.down(second).tolist() == ([9] * 4 if fails else [2] * 4)
    assert [len(calls) for calls in replayed] == [2, 2]
    assert list(turns) == []


def test_recordings_keep_no_memory_and_are_bounded(bench: Bench, replayed: list[Submissions]) -> None:
    recordings, stream = Recordings(lambda: (0, 0), most=3), bench.stream
    before = bench.device.memory()["active"]
    arrays = [bench.device.empty((1000,), np.uint8) for _ in range(5)]

    def run(k: int, setting: int = 0) -> None:
        recordings.run("fill", stream, (arrays[k],), setting, lambda: stream.fill(arrays[k], setting))

    for k in (0, 0, 0, 1, 1, 0, 2, 2, 3, 3, 0, 1, 4, 4):
        run(k)
        assert len(recordings) <= 3
    assert len(replayed) == 4 + 1 + 1 + 1 + 1  # of 0, whose turn came often, all; 1 was forgotten in between
    run(4, 7)
    assert bench.down(arrays[4])[0] == 7  # another setting, though the address is the same
    stream.synchronize()
    arrays.clear()
    assert bench.device.memory()["active"] == before


def test_arrays_together_do_not_overlap(bench: Bench) -> None:
    shapes = [((5, 3), np.int32), ((0, 4), np.float32), ((7,), np.uint8), ((2, 2), np.float16)]
    before = bench.device.memory()["active"]
    arrays = bench.device.together(*shapes)
    for one, other in pairwise(arrays):
        assert one.pointer + one.nbytes <= other.pointer
        assert other.pointer % 256 == 0
    hosts = [np.arange(np.prod(shape)).reshape(shape).astype(dtype) for shape, dtype in shapes]
    for array, host in zip(arrays, hosts, strict=True):
        bench.stream.upload(array, host)
    for found, host in zip(bench.stream.downloaded(arrays), hosts, strict=True):
        bench.stream.synchronize()
        np.testing.assert_array_equal(found, host)
        assert found.dtype == host.dtype
    del array, one, other
    last = arrays.pop()
    arrays.clear()
    assert bench.device.memory()["active"] > before  # one of them is left
    del last
    assert bench.device.memory()["active"] == before
