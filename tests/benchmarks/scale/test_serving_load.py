"""What the serving benchmark measures, on loads that are known."""

import subprocess
import sys
import time
from typing import Any

import pytest

from vocabseg.benchmarks.scale import serving
from vocabseg.benchmarks.scale.occupancy import IdleCores
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


def test_latencies_count_from_the_arrival_and_not_from_when_a_thread_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self, url: str, retries: int):
            assert (url, retries) == ("grpc://somewhere", 0)

        def __enter__(self) -> "Slow":
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def __call__(self, image: Any, vocabulary: Any) -> None:
            time.sleep(0.02)

    monkeypatch.setattr(serving, "Client", Slow)
    monkeypatch.setattr(serving, "UNDER_WAY", 1)
    found = serving._arriving("grpc://somewhere", [b""], rate=200, seconds=0.1)
    assert (found["images"], found["errors"]) == (20, 0)
    # 20 in a row take 0.4 s, and the last arrives after about 0.1 s; a thread alone waits 0.02 s for each.
    assert found["p99"] > 0.2
    assert found["p50"] < found["p99"]
