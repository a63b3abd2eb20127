"""A real server, and clients that want more of it than answers."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.attack.slow_images import jpeg
from tests.attack.sockets import sockets, tree
from tests.serving.servers import SCENE, Running, running
from vocabseg.client import Client
from vocabseg.runtime.errors import ServerError
from vocabseg.runtime.segmenter.segmenter import Segmenter

NAMES = ["red circle", "blue square", "grass"]
INFER = "/v2/models/vocabseg/infer"


def asked(server: Running, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.http.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_only_this_machine_reaches_it(server: Running) -> None:
    found = sockets(tree(server.process.pid))
    assert {socket.port for socket in found} >= {int(url.rpartition(":")[2]) for url in (server.http, server.grpc)}
    assert [socket for socket in found if not socket.local] == []


def test_other_users_of_the_machine_do_not_read_its_shared_memory(server: Running) -> None:
    regions = list(Path("/dev/shm").glob(f"vocabseg-{server.process.pid}-*"))
    assert regions
    assert {region.stat().st_mode & 0o777 for region in regions} == {0o600}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v2/repository/index", {}),
        ("POST", "/v2/repository/models/vocabseg/load", {"parameters": {"config": "{}"}}),
        ("POST", "/v2/repository/models/vocabseg/unload", {}),
        ("GET", "/v2/systemsharedmemory/status", None),
        ("POST", "/v2/systemsharedmemory/region/mine/register", {"key": "/vocabseg", "offset": 0, "byte_size": 64}),
        ("POST", "/v2/systemsharedmemory/unregister", {}),
        ("GET", "/v2/cudasharedmemory/status", None),
        ("GET", "/v2/logging", None),
        ("POST", "/v2/logging", {"log_file": "/tmp/log", "log_verbose_level": 9}),
        ("GET", "/v2/trace/setting", None),
        ("POST", "/v2/trace/setting", {"trace_file": "/tmp/trace", "trace_level": ["TENSORS"]}),
        ("POST", "/v2/models/vocabseg/trace/setting", {"trace_level": ["TENSORS"]}),
    ],
)
def test_http_does_for_strangers_what_clients_need_and_no_more(
    server: Running,
    method: str,
    path: str,
    body: Any,
) -> None:
    content = b"" if body is None else json.dumps(body).encode()
    status, text = asked(server, method, path, content)
    assert (status, b"restricted" in text) == (403, True), text
    assert asked(server, method, path, content, **{"vocabseg-key": "guess"})[0] == 403


def test_grpc_does_for_strangers_what_clients_need_and_no_more(server: Running) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    with triton.InferenceServerClient(server.grpc.removeprefix("grpc://")) as client:
        for call in (
            client.get_model_repository_index,
            client.get_system_shared_memory_status,
            lambda: client.register_system_shared_memory("mine", "/vocabseg", 64),
            client.get_log_settings,
            lambda: client.update_log_settings({"log_verbose_level": 9}),
            client.get_trace_settings,
            lambda: client.update_trace_settings(settings={"trace_level": ["TENSORS"]}),
            lambda: client.unload_model("vocabseg"),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()


def killing(kind: str, port: int) -> None:
    """A request that ends Triton 2.51; other versions refuse it."""
    body, extra = b"[" * 1_000_000, ""
    if kind == "shape":
        tensor = {"name": "PIXELS", "shape": [1, 2**40, 8, 3], "datatype": "UINT8", "data": [1]}
        body = json.dumps({"inputs": [tensor]}).encode()
    elif kind == "chunks":
        body, extra = b"1\r\nx\r\n" * 800_000 + b"0\r\n\r\n", "Transfer-Encoding: chunked\r\n"
    length = "" if extra else f"Content-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{extra}{length}\r\n".encode() + body)
            connection.recv(1000)
        except OSError:  # it has died before it had read all
            pass


def test_a_server_that_requests_have_killed_is_back_however_often(
    can_serve: None,
    local: Segmenter,
) -> None:
    expected = local(SCENE, NAMES).scores
    deaths = 0
    with running() as own, Client(own.http, timeout=120, retries=100) as client:
        port = int(own.http.rpartition(":")[2])
        for kind in ("brackets", "shape", "chunks", "brackets", "shape", "chunks", "brackets"):
            killing(kind, port)
            assert np.array_equal(client(SCENE, NAMES).scores, expected), kind
            deaths += 1
        told = [line for line in own.lines if line.startswith("Restarting: the server ended with code")]
        assert own.process.poll() is None
        assert 0 < len(told) <= deaths
        assert own.stop() == 0


def test_a_model_process_that_is_stuck_is_replaced(can_serve: None, local: Segmenter) -> None:
    """By an image that takes minutes, though it keeps all limits: 90 scans over 77 megapixels."""
    slow = jpeg(90, 8800)
    assert len(slow) < 1_000_000
    limits = ("--limit", "max_step_seconds=4", "--limit", "max_pixels=80000000")
    with running(*limits) as own, Client(own.http, timeout=120, retries=100) as client:
        expected = local(SCENE, NAMES).scores
        assert np.array_equal(client(SCENE, NAMES).scores, expected)
        (model,) = own.model_processes()
        with pytest.raises(ServerError), Client(own.http, timeout=20, retries=0) as other:
            other(slow, NAMES)
        assert np.array_equal(client(SCENE, NAMES).scores, expected)
        assert own.model_processes() != [model]
        assert any("Restarting: a model process has died" in line for line in own.lines)
