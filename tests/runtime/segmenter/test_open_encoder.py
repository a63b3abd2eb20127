"""The image encoder opens in a thread beside the proposal network."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vocabseg.benchmarks.scenes.world import render_scene
from vocabseg.runtime.engines import host_engines
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.segmenter.opening import load

IMAGE = render_scene(3, "test", 0, size=(96, 120), objects=2).image


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The graphs that were opened, and in which thread."""
    found: list[tuple[str, str]] = []
    real = host_engines._open

    def recorded(path: Path, *rest: Any) -> Any:
        found.append((path.stem, threading.current_thread().name))
        return real(path, *rest)

    monkeypatch.setattr(host_engines, "_open", recorded)
    return found


@pytest.mark.parametrize(("threads", "where"), [("2", "open encoder"), ("1", "MainThread")])
def test_each_network_is_opened_once(
    opened: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, threads: str, where: str
) -> None:
    monkeypatch.setenv("VOCABSEG_THREADS", threads)
    segmenter = load(device="cpu", engine="onnxruntime")
    first, second = segmenter.propose(IMAGE), segmenter.propose(IMAGE)
    assert sorted(opened) == [("image_encoder", where), ("proposal", "MainThread")]
    np.testing.assert_array_equal(first.embeddings, second.embeddings)


def test_what_fails_in_the_thread_is_raised_by_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOCABSEG_THREADS", "2")
    real = host_engines._open

    def failing(path: Path, *rest: Any) -> Any:
        if path.stem == "image_encoder":
            raise EngineError("no room")
        return real(path, *rest)

    monkeypatch.setattr(host_engines, "_open", failing)
    with pytest.raises(EngineError, match="no room"):
        load(device="cpu", engine="onnxruntime").propose(IMAGE)
