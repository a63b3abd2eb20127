"""A GPU that is there and does not work fails the tests that need it; it does not skip them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import REPOSITORY
from tests.gpu import REQUIRED, skip_without_gpu
from vocabseg.runtime.errors import EngineError


def test_a_gpu_that_cannot_be_used_is_an_error_and_none_is_a_skip() -> None:
    error = EngineError("the kernels were not built")
    with pytest.raises(EngineError, match="were not built"):
        skip_without_gpu(error, lambda: True)
    with pytest.raises(pytest.skip.Exception, match="no GPU: the kernels were not built"):
        skip_without_gpu(error, lambda: False)


@pytest.mark.parametrize(
    ("required", "line"), [("", "1 passed, 3 skipped"), ("1", "1 failed, 1 passed, 1 skipped, 1 error")]
)
def test_required_gpus_turn_skips_of_gpu_tests_into_failures(tmp_path: Path, required: str, line: str) -> None:
    source = """
import pytest

@pytest.mark.gpu
def test_inside():
    pytest.importorskip("no_such_package", reason="PyCUDA is not installed")

@pytest.fixture
def bench():
    pytest.skip("no GPU")

@pytest.mark.gpu
def test_in_a_fixture(bench): pass

def test_another():
    pytest.skip("no matter")

@pytest.mark.gpu
def test_that_runs(): pass
"""
    (tmp_path / "conftest.py").write_text((REPOSITORY / "tests" / "conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(source)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", REPOSITORY / "pyproject.toml",
         "--rootdir", tmp_path, tmp_path],
        env={**os.environ, REQUIRED: required}, capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert line in run.stdout, run.stdout + run.stderr
    assert ("VOCABSEG_REQUIRE_GPU is set" in run.stdout) == bool(required)
    assert run.returncode == bool(required)
