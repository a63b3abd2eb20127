"""On a terminal, work that is over at once gets no bar, and other work the bar of what it does by then."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vocabseg.commands import terminal
from vocabseg.runtime.progress import Progress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the bar of a terminal is told, from "begin" to "end"."""
    told: list[object] = []

    @contextmanager
    def bar() -> Iterator[Progress]:
        told.append("begin")
        try:
            yield lambda *report: told.append(report)
        finally:
            told.append("end")

    monkeypatch.setattr(terminal, "_stage_bar", bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return told


def test_short_work_shows_no_bar(shown: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 0.2)
    with terminal.progress() as report:
        report("reading", 0, 1)
    time.sleep(0.4)  # nor later
    assert shown == []


def work(shown: list[object]) -> None:
    """Fails when it is nearly done."""
    with terminal.progress() as report:
        report("reading", 0, 1)
        report("encoding", 3, 9)
        until = time.monotonic() + 30
        while len(shown) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        report("encoding", 9, 9)
        raise KeyError


def test_longer_work_shows_what_it_does_now(shown: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 0.05)
    with pytest.raises(KeyError):
        work(shown)
    assert shown == ["begin", ("encoding", 3, 9), ("encoding", 9, 9), "end"]
