"""How many threads are used."""

import pytest

from vocabseg.runtime import threads
from vocabseg.runtime.errors import EngineError


def test_the_environment_decides_unless_the_caller_does(monkeypatch):
    monkeypatch.delenv("VOCABSEG_THREADS", raising=False)
    assert threads.thread_count() == threads.usable_cpus() >= 1
    assert threads.thread_count(7) == 7
    monkeypatch.setenv("VOCABSEG_THREADS", "3")
    assert threads.thread_count() == 3
    assert threads.thread_count(2) == 2


@pytest.mark.parametrize("setting", ["0", "two", "-1", "1.5"])
def test_a_count_that_is_none_is_told(monkeypatch, setting):
    monkeypatch.setenv("VOCABSEG_THREADS", setting)
    with pytest.raises(EngineError, match=f"VOCABSEG_THREADS is '{setting}'"):
        threads.thread_count()
    with pytest.raises(EngineError, match="threads is 0"):
        threads.thread_count(0)
