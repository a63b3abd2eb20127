"""Every attack must be over in bounded time: a test that hangs fails."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.manifests import write_small_bundle
from tests.serving.conftest import can_serve, local, server  # noqa: F401 - fixtures
from vocabseg.runtime.bundle.folder import demo_folder

SECONDS = 600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_folder(), tmp_path / "demo"))


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
