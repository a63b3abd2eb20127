"""How many threads are used."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def first_version(folder: str, quota: str) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("own", "files", "quotas"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n", "a/cpu.max": "max 100000\n"}, [1.5]),
        ("0::/a\n", {"a/cpu.max": "200000 100000", "cpu.max": "50000 100000"}, [0.5, 2]),
        ("0::/elsewhere\n", {"cpu.max": "50000 100000"}, [0.5]),  # a container, whose own group is the root
        ("5:memory:/m\n1:cpu:/g\n0::/\n", first_version("cpu/g", "50000"), [0.5]),
        ("3:cpu,cpuacct:/docker/1\n", first_version("cpu,cpuacct", "300000"), [3]),
        ("1:cpu:/g\n", first_version("cpu/g", "-1"), []),
        ("1:cpu:/g\n", first_version("cpu/g", "damaged"), []),
        ("0::/../..\n", {"cpu.max": "max 100000"}, []),
        ("", {}, []),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(tmp_path, own, files, quotas):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert sorted(threads.cpu_quotas(tmp_path / "groups", tmp_path / "own")) == quotas
    assert threads.cpu_quotas(tmp_path / "groups", tmp_path / "nothing") == []


@contextlib.contextmanager
def limited_group() -> Iterator[Path]:
    """A control group that may use half a CPU."""
    group = Path(f"/sys/fs/cgroup/cpu/vocabseg-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        pytest.skip(f"needs root and control groups of version 1 ({error})")
    yield group
    group.rmdir()


def test_a_quota_counts_in_the_process_that_has_it():
    code = "import sys; open(sys.argv[1], 'w').write('0'); from vocabseg.runtime.threads import *; print(usable_cpus())"
    with limited_group() as group:
        found = subprocess.run([sys.executable, "-c", code, group / "cgroup.procs"], capture_output=True, text=True)
    assert found.stdout == "1\n", found.stderr
