"""One server with the demo model for all tests that do it no harm."""

from collections.abc import Iterator

import pytest

from tests.serving.servers import Running, missing, running
from vocabseg.runtime.segmenter.opening import load
from vocabseg.runtime.segmenter.segmenter import Segmenter

ROAD = "road=grass,red circle,sky"


@pytest.fixture(scope="session")
def can_serve() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(f"no server can be started: {reason}")


@pytest.fixture(scope="session")
def server(can_serve: None) -> Iterator[Running]:
    with running("--vocabulary", ROAD, "--limit", "max_pixels=4000000", "--limit", "max_names=500") as started:
        yield started


@pytest.fixture(scope="session")
def local() -> Segmenter:
    return load()
