"""What the serving benchmark measures, on loads that are known."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vocabseg.benchmarks import serving_bench
from vocabseg.benchmarks.scale import serving
from vocabseg.benchmarks.scale.occupancy import IdleCores
from vocabseg.runtime.errors import ServerError
from vocabseg.runtime.threads import usable_cpus


@pytest.mark.parametrize(("code", "busy"), [("input()", 0), ("while True: pass", 1)])
def test_idle_cores_are_those_that_a_process_leaves(code: str, busy: int) -> None:
    """Also while others have the cores: what is ready to run counts as running."""
    process = subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{code}"], stdin=-1, stdout=-1, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        with IdleCores([process.pid]) as idle:
            time.sleep(0.6)
        assert idle.share == pytest.approx(1 - busy / usable_cpus(), abs=0.01)
    finally:
        process.kill()
        process.communicate()


class Nobody:
    """A client whose server answers nothing."""

    failure: Exception = ServerError("no engine")

    def __init__(self, url: str, retries: int):
        assert (url, retries) == ("grpc://somewhere", 0)

    def __enter__(self) -> "Nobody":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __call__(self, image: Any, vocabulary: Any) -> None:
        time.sleep(0.01)
        raise self.failure


def test_latencies_count_from_the_arrival_and_not_from_when_a_thread_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Nobody):
        def __call__(self, image: Any, vocabulary: Any) -> None:
            time.sleep(0.02)

    monkeypatch.setattr(serving, "Client", Slow)
    monkeypatch.setattr(serving, "UNDER_WAY", 1)
    found = serving._arriving("grpc://somewhere", [b""], rate=200, seconds=0.1)
    assert (found["images"], found["errors"]) == (20, 0)
    # 20 in a row take 0.4 s, and the last arrives after about 0.1 s; a thread alone waits 0.02 s for each.
    assert found["p99"] > 0.2
    assert found["p50"] < found["p99"]


def test_a_server_that_answers_nothing_is_reported_with_its_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "Client", Nobody)
    monkeypatch.setattr(serving, "write_repository", lambda *given, **options: None)
    process = subprocess.Popen(["sleep", "60"])
    server = SimpleNamespace(
        process=process, wait_until_ready=print, urls=lambda: {"grpc": "grpc://somewhere"}, stop=process.kill
    )
    monkeypatch.setattr(serving, "start", lambda *given, **options: server)
    some: Any = SimpleNamespace(name="demo")
    found = serving.served(some, some, tmp_path, tmp_path, "grpc", 2, [Path(__file__)], 0.2, serving.ARRIVALS)
    process.wait()
    local = dict.fromkeys(("images per second", "CPU seconds per image", "of decoding", "idle cores"), 0.1)
    report = {"machine": "", "bundle": "", "instances": 1, "threads": 1, "clients": 2}
    report |= {"batching": found, "no batching": found, "local": local, "local again": local}
    report["broken"] = serving.broken(report)
    serving_bench._print(report)
    told = capsys.readouterr().out
    assert "0 images" in told
    assert "errors, no answer, memory" in told
    assert "first error: no engine\n" in told
    assert f"broken: {2 * found['errors']} errors; " in told


def test_a_fault_of_the_benchmark_itself_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "Client", Nobody)
    monkeypatch.setattr(Nobody, "failure", KeyError("a name"))
    with pytest.raises(KeyError, match="a name"):
        serving._arriving("grpc://somewhere", [b""], rate=200, seconds=0.02)
