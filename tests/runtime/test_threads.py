"""How many threads are used."""

from concurrent.futures import ThreadPoolExecutor

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


def test_a_thread_that_works_beside_others_has_a_count_of_its_own(monkeypatch):
    monkeypatch.setenv("VOCABSEG_THREADS", "3")
    with ThreadPoolExecutor(1, initializer=threads.limit_threads, initargs=(1,)) as pool:
        assert pool.submit(threads.thread_count).result() == 1
        assert pool.submit(threads.thread_count, 2).result() == 2
    assert threads.thread_count() == 3
