"""What a server does when it is stopped, killed, started again, or cannot start."""

import contextlib
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.serving.servers import SCENE, run, running, serving_folder
from vocabseg.client import Client
from vocabseg.runtime.errors import EngineError, ServerError
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.serving.server import process_table
from vocabseg.serving.server import supervisor as supervisor_module
from vocabseg.serving.server import triton_server as server_module
from vocabseg.serving.server.environment import prepare
from vocabseg.serving.server.supervisor import STARTS, Supervisor
from vocabseg.serving.server.triton_server import Ports

NAMES = ["red circle", "blue square", "grass"]


def test_sigterm_answers_what_was_taken_and_a_new_server_remembers_the_names(
    can_serve: None, local: Segmenter, tmp_path: Path
) -> None:
    expected = local(SCENE, NAMES)
    with running("--max-batch", "2", cache_dir=tmp_path) as server, ThreadPoolExecutor(12) as pool:
        client = Client(server.http, retries=0)
        client(SCENE, NAMES)
        assert server.metric('names_total.*source="encoded"') == len(NAMES) + 2  # and those of the warm-up
        calls = [pool.submit(client, SCENE, NAMES) for _ in range(12)]
        while (taken := server.metric("nv_inference_pending_request_count")) == 0:
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        answered = 0
        for call in calls:
            with contextlib.suppress(ServerError):  # a request that came too late is refused
                assert np.array_equal(call.result(60).scores, expected.scores)
                answered += 1
        assert answered >= taken
        assert server.process.wait(60) == 0
        assert not client.ready()
    with running(cache_dir=tmp_path) as server:
        with Client(server.http) as client:
            assert np.array_equal(client(SCENE, NAMES).scores, expected.scores)
        assert server.metric('names_total.*source="encoded"') == 0
        assert server.metric('names_total.*source="disk"') == len(NAMES) + 2
        assert server.stop(signal.SIGINT) == 0


def test_a_killed_model_process_is_replaced(can_serve: None, local: Segmenter) -> None:
    expected = local(SCENE, NAMES)
    with running() as server, Client(server.http) as client, Client(server.grpc) as other:
        assert np.array_equal(client(SCENE, NAMES).scores, expected.scores)
        (model,) = server.model_processes()
        os.kill(model, signal.SIGKILL)
        assert np.array_equal(client(SCENE, NAMES).scores, expected.scores)
        (new,) = server.model_processes()
        assert new != model
        # And while it is at work.
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(other, SCENE, NAMES) for _ in range(8)]
            time.sleep(0.05)
            os.kill(new, signal.SIGKILL)
            for call in calls:
                assert np.array_equal(call.result(60).scores, expected.scores)
        assert client.ready()


def test_the_server_ends_with_the_process_that_started_it(can_serve: None) -> None:
    with running() as server:
        (model,) = server.model_processes()
        server.process.kill()
        server.process.wait(10)
        end = time.monotonic() + 20
        while Path(f"/proc/{model}").exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert not Path(f"/proc/{model}").exists()


def test_a_port_in_use_is_told_in_one_line(can_serve: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--http-port", str(port), "--quiet")
    assert done.returncode == 2
    assert done.stderr == (
        f"vocabseg: cannot listen on 127.0.0.1:{port} (address already in use): choose another with --http-port\n"
    )


def test_an_address_of_another_machine_is_told_in_one_line(can_serve: None) -> None:
    done = run("serve", "--host", "192.0.2.1", "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("vocabseg: cannot listen on 192.0.2.1:8000 (")
    assert done.stderr.count("\n") == 1


def test_without_a_supervisor_a_dead_model_process_ends_the_server(
    can_serve: None, local: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, whose restart policy then acts; the repository is the one that `vocabseg triton` writes."""
    monkeypatch.setenv("VOCABSEG_SERVING_DIR", serving_folder())
    variables = server_module._variables
    monkeypatch.setattr(server_module, "SUPERVISED", "NOBODY_LOOKS_AT_THIS")
    assert "NOBODY_LOOKS_AT_THIS" in variables(tmp_path, tmp_path, tmp_path)
    done = run("triton", "--output", str(tmp_path / "models"), "--threads", "1", "--instances", "1", "--name", "seg")
    assert done.returncode == 0, done.stderr
    (tmp_path / "server").mkdir()
    environment = prepare(local.choice.name, lambda what, done, total: None)
    server = server_module.start(environment, tmp_path / "models", "seg", tmp_path / "server", ports=Ports(0, 0, 0))
    try:
        server.wait_until_ready(60)
        with Client(server.urls()["grpc"], model="seg") as client:
            assert np.array_equal(client(SCENE, NAMES).scores, local(SCENE, NAMES).scores)
        (model,) = process_table.children(server.process.pid, server_module.STUB)
        os.kill(model, signal.SIGKILL)
        end = time.monotonic() + 10
        while server.ready() and time.monotonic() < end:
            time.sleep(0.1)
        assert not server.ready()
    finally:
        server.stop()


@pytest.mark.parametrize(("failing", "tries"), [(0, 1), (2, 3), (99, STARTS)])
def test_a_start_that_fails_is_tried_again_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, tries: int
) -> None:
    """As when a request that ends the server comes while it starts."""
    made: list[None] = []

    def start(self: Supervisor) -> None:
        made.append(None)
        if len(made) <= failing:
            raise EngineError("the server ended with code -11")

    monkeypatch.setattr(Supervisor, "start", start)
    monkeypatch.setattr(supervisor_module, "PAUSE", 0.0)
    supervisor = Supervisor(tmp_path, tmp_path, "seg", "127.0.0.1", Ports(0, 0, 0), False, 1.0)
    with pytest.raises(EngineError) if failing > STARTS else contextlib.nullcontext():
        supervisor._start_again()
    assert len(made) == tries
