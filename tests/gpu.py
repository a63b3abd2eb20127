"""When a test that needs a GPU is skipped, and when that is a failure."""

import os
from collections.abc import Callable
from typing import NoReturn

import pytest

REQUIRED = "VOCABSEG_REQUIRE_GPU"


def skip_without_gpu(error: Exception, present: Callable[[], bool] | None = None) -> NoReturn:
    """Skip with `error` as the reason where the machine has no GPU; raise it where it has one, which cannot be used."""
    from vocabseg.runtime.engines import choose

    # conftest.py hides the GPU from the tests that do not need one.
    if (present or getattr(choose.gpu_present, "found", choose.gpu_present))():
        raise error
    pytest.skip(f"no GPU: {error}")


def fail_instead_of_skipping(report: pytest.TestReport, item: pytest.Item) -> None:
    """Turn the skip of a test marked gpu into a failure, if VOCABSEG_REQUIRE_GPU is set: a broken GPU is no success."""
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("gpu")
        and os.environ.get(REQUIRED)
    ):
        report.outcome = "failed"
        report.longrepr = f"{REQUIRED} is set, and {item.nodeid} was skipped: {report.longreprtext}"
