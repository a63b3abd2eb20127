"""Every attack must be over in bounded time: a test that hangs fails."""

import signal
from collections.abc import Iterator

import pytest

from tests.serving.conftest import can_serve, local, server  # noqa: F401 - fixtures

SECONDS = 600


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    def over(number: int, frame: object) -> None:
        raise AssertionError(f"not over after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
