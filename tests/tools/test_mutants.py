"""Faults in the CUDA kernels and their launch code are noticed: a few of those that tools/mutants.py knows."""

import pytest

from tests.cuda_emulation import library
from tools import mutants

# A missing barrier, arithmetic, and a grid.
SAMPLE = ("boxes/select-no-barrier-in-the-middle", "masks/no-cap", "launch/boxes-a-band-less")
# Enough to notice them.
TESTS = ("test_launch", "test_device_limits")


def test_the_list_fits_the_sources() -> None:
    found = mutants.mutants()
    assert len(found) == len({mutant.name for mutant in found}) > 200
    assert {mutant.file.rpartition("/")[2] for mutant in found} >= {
        *(path.name for path in library.KERNELS.glob("*.cuh")), "launch.py", "arguments.py", "face.py", "pixel_math.h"
    }  # fmt: skip


@pytest.mark.skipif(library.compiler() is None, reason="no g++ to build the emulated kernels with")
def test_some_faults_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "TESTS", TESTS)
    monkeypatch.setattr(mutants, "FIRST", {})
    chosen = [mutant for mutant in mutants.mutants() if mutant.name in SAMPLE]
    assert len(chosen) == len(SAMPLE)
    assert mutants.survivors(chosen) == []  # and none is noticed without a fault


def test_names_that_nothing_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.main(["nonsense"]) == 2
    assert capsys.readouterr().err == "mutants: no mutant's name contains nonsense\n"
