"""The emulation of CUDA itself: it finds the faults it is there for, and computes what a GPU computes."""

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.cuda_emulation import library
from tests.cuda_emulation.library import Emulation, EmulationError

pytestmark = pytest.mark.skipif(library.compiler() is None, reason="no g++ to build the emulated kernels with")
FAULTY = Path(library.__file__).with_name("faulty.cu")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "watched"])
def kernels(request: pytest.FixtureRequest) -> Emulation:
    return Emulation(request.param, source=FAULTY)


@pytest.fixture(scope="module")
def watched() -> Emulation:
    return Emulation(True, source=FAULTY)


def run(
    kernels: Emulation,
    name: str,
    arrays: list[np.ndarray],
    numbers: tuple[int, ...] = (),
    threads: int = 64,
    blocks: int = 1,
    shared: int = 0,
    seed: int = 0,
    unknown: tuple[int, ...] = (),
) -> None:
    """Launch on these arrays; those numbered in `unknown` hold nothing yet."""
    kernels.seed(seed)
    for k, array in enumerate(arrays):
        kernels.allocated(array.ctypes.data, array.nbytes, known=k not in unknown)
    try:
        parameters = [struct.pack("P", array.ctypes.data) for array in arrays] + [struct.pack("i", n) for n in numbers]
        kernels.launch(name, (blocks,), (threads,), parameters, shared)
    finally:
        for array in arrays:
            kernels.freed(array.ctypes.data)


def numbers(count: int = 64) -> np.ndarray:
    return np.random.default_rng(1).permutation(count).astype(np.int32)


def zeros(count: int = 64) -> np.ndarray:
    return np.zeros(count, np.int32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_barriers_order_threads(kernels: Emulation, seed: int) -> None:
    given, out = numbers(), zeros()
    run(kernels, "neighbours", [given, out], (1,), shared=256, seed=seed)
    np.testing.assert_array_equal(out, np.roll(given, -1))
    run(kernels, "warp_neighbours", [given, out], (1,), shared=256, seed=seed)
    np.testing.assert_array_equal(out.reshape(2, 32), np.roll(given.reshape(2, 32), -1, axis=1))


def test_a_missing_barrier_gives_another_result() -> None:
    plain = Emulation(False, source=FAULTY)
    given, out = numbers(), zeros()
    run(plain, "neighbours", [given, out], (0,), shared=256, seed=5)
    assert (out != np.roll(given, -1)).any()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["neighbours", "warp_neighbours"])
def test_races_in_shared_memory(watched: Emulation, name: str, seed: int) -> None:
    # In the order of their numbers some threads happen to read before and some after: either way it is found.
    with pytest.raises(EmulationError, match=r"race in shared memory|which nobody has written"):
        run(watched, name, [numbers(), zeros()], (0,), shared=256, seed=seed)


@pytest.mark.parametrize("seed", [0, 3])
def test_races_between_blocks(watched: Emulation, seed: int) -> None:
    run(watched, "blocks_in_turn", [zeros()], threads=1, seed=seed)
    with pytest.raises(EmulationError, match="race in global memory"):
        run(watched, "blocks_in_turn", [zeros()], threads=1, blocks=3, seed=seed)


def test_atomics_do_not_race(kernels: Emulation) -> None:
    out = zeros(1)
    run(kernels, "count_threads", [out], blocks=7)
    assert out[0] == 7 * 64


def test_a_barrier_that_not_all_reach(kernels: Emulation) -> None:
    with pytest.raises(EmulationError, match="32 of 64 threads wait at a barrier, 32 have returned"):
        run(kernels, "half_a_barrier", [zeros()])
    with pytest.raises(EmulationError, match=r"has returned|warp operation that not all lanes"):
        run(kernels, "half_a_warp", [zeros()])
    with pytest.raises(EmulationError, match="asks for the value of lane 7, which is not in 0xf"):
        run(kernels, "foreign_lane", [zeros()])
    out = zeros()
    run(kernels, "neighbours", [numbers(), out], (1,), shared=256)  # a failure leaves nothing behind
    np.testing.assert_array_equal(out, np.roll(numbers(), -1))


def test_foreign_and_unwritten_memory(watched: Emulation) -> None:
    run(watched, "read_at", [numbers(), zeros()], (63,))
    for index in (-1, 64, 2**20):
        with pytest.raises(EmulationError, match=r"reads 4 bytes at .* outside of every allocation"):
            run(watched, "read_at", [numbers(), zeros()], (index,))
    with pytest.raises(EmulationError, match="in global memory, which nobody has written"):
        run(watched, "read_at", [numbers(), zeros()], (3,), unknown=(0,))
    with pytest.raises(EmulationError, match="in shared memory, which nobody has written"):
        run(watched, "read_unwritten", [zeros()], shared=256)
    with pytest.raises(EmulationError, match="outside of every allocation"):
        run(watched, "neighbours", [numbers(), zeros()], (1,), shared=128)


@pytest.mark.parametrize("shared", [0, 1])
def test_memory_that_is_not_aligned(watched: Emulation, shared: int) -> None:
    out = zeros()
    run(watched, "pair_at", [numbers(), out], (2, shared), shared=256)
    assert (out == numbers()[2:4].sum()).all()
    with pytest.raises(EmulationError, match=r"8 bytes at .* are not aligned"):
        run(watched, "pair_at", [numbers(), zeros()], (3, shared), shared=256)


def test_what_is_read_in_part_must_be_aligned_as_a_whole(watched: Emulation) -> None:
    given, out = numbers(), zeros()
    run(watched, "four_at", [given, out], (4,), shared=256)
    assert (out == given[4:7] @ [1, 2, 3]).all()
    with pytest.raises(EmulationError, match=r"16 bytes at .* are not aligned"):
        run(watched, "four_at", [given, zeros()], (6,), shared=256)


def test_launches_that_cannot_be(kernels: Emulation) -> None:
    with pytest.raises(EmulationError, match=r"blocks of \(2048, 1, 1\) threads cannot be launched"):
        run(kernels, "count_threads", [zeros()], threads=2048)
    with pytest.raises(EmulationError, match="300000 bytes of dynamic shared memory"):
        run(kernels, "count_threads", [zeros()], shared=300_000)
    with pytest.raises(EmulationError, match="there is no kernel missing"):
        run(kernels, "missing", [zeros()])
    with pytest.raises(EmulationError, match=r"takes parameters of \[8, 8, 4\] bytes, not of \[8, 8\]"):
        run(kernels, "read_at", [zeros(), zeros()])
    with pytest.raises(EmulationError, match="too few bytes of parameters"):
        kernels.launch_packed("read_at", (1,), (1,), bytes(16))


@pytest.mark.parametrize("turing", [False, True])
def test_tensor_cores(turing: bool) -> None:
    kernels = Emulation(turing=turing, source=FAULTY)
    generator = np.random.default_rng(0)
    a, b, c = (generator.normal(size=shape).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    d = np.zeros_like(c)
    run(kernels, "product", [a, b, c, d], threads=32, seed=4)
    wanted = a.astype(np.float16).astype(np.float64) @ b.astype(np.float16).astype(np.float64) + c
    np.testing.assert_allclose(d, wanted, atol=1e-5)


def test_shuffles(kernels: Emulation) -> None:
    given, out = numbers(), np.zeros((64, 6), np.int32)
    run(kernels, "shuffles", [given, out], seed=1)
    lanes = given.reshape(2, 32)
    place = np.arange(32)
    np.testing.assert_array_equal(out[:, 0], np.repeat(lanes.sum(axis=1), 32))
    np.testing.assert_array_equal(out[:, 1], lanes[:, np.where(place < 3, place, place - 3)].ravel())
    np.testing.assert_array_equal(out[:, 2], lanes[:, np.where(place > 26, place, place + 5)].ravel())
    np.testing.assert_array_equal(out[:, 3], lanes[:, place // 8 * 8 + 7].ravel())
    ballots = ((lanes % 3 == 0) << place.astype(np.int64)).sum(axis=1)
    np.testing.assert_array_equal(out[:, 4].view(np.uint32), np.repeat(ballots, 32))
    assert (out[:, 5] == 1).all()
