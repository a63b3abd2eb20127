"""A real server with the demo model answers what the local segmenter answers, and stands what clients do to it."""

import asyncio
import base64
import http.client
import json
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.malformed import Bad, malformed
from tests.serving.servers import SCENE, Running
from vocabseg.client import AsyncClient, Client
from vocabseg.runtime.errors import ImageError, ServerError, VocabularyError
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary

NAMES = ["red circle", "blue square", "grass"]
OTHERS = ["green star", "sky", "water", "sand"]


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Running) -> Any:
    with Client(getattr(server, request.param), retries=0) as opened:
        yield opened


def picture(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """A crop of the scene: pictures of their own with regions in them."""
    scene = np.asarray(Image.open(SCENE).convert("RGB"))
    generator = np.random.default_rng(seed)
    y = int(generator.integers(0, scene.shape[0] - height))
    x = int(generator.integers(0, scene.shape[1] - width))
    return np.ascontiguousarray(scene[y : y + height, x : x + width])


@pytest.mark.parametrize("form", ["path", "bytes", "pixels", "PIL"])
def test_the_answer_is_the_local_one_to_the_last_bit(client: Client, local: Segmenter, form: str) -> None:
    scene = Image.open(SCENE)
    image = {"path": SCENE, "bytes": SCENE.read_bytes(), "pixels": np.asarray(scene.convert("RGB")), "PIL": scene}[form]
    expected, result = local(SCENE, NAMES), client(image, NAMES)
    assert result.classes == expected.classes
    assert result.labels.dtype == expected.labels.dtype
    assert np.array_equal(result.labels, expected.labels)
    assert np.array_equal(result.scores, expected.scores)
    assert np.array_equal(result.image, expected.image)
    assert len(np.unique(expected.labels)) > 1


def test_plain_json_without_a_client(server: Running, local: Segmenter) -> None:
    def text(name: str, *data: str) -> dict[str, Any]:
        return {"name": name, "shape": [1, len(data)], "datatype": "BYTES", "data": list(data)}

    image = base64.b64encode(SCENE.read_bytes()).decode()
    question = {"inputs": [text("IMAGE", image), text("CLASSES", *NAMES)], "outputs": [{"name": "SEGMENTS"}]}
    asked = urllib.request.Request(
        f"{server.http}/v2/models/vocabseg/infer", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        (output,) = json.load(answer)["outputs"]
    assert json.loads(output["data"][0]) == local(SCENE, NAMES).to_json()


def test_one_bad_image_of_many_does_not_end_the_others_on_request(client: Client, local: Segmenter) -> None:
    images = [b"no image", SCENE, "none.png", picture(1)]
    found = list(client.segment_many(images, NAMES, on_error="yield"))
    assert [type(outcome).__name__ for outcome in found] == ["ImageError", "RemoteResult"] * 2
    kept = list(client.segment_many(images, NAMES, on_error="skip"))
    for place, (outcome, other) in enumerate(zip((found[1], found[3]), kept, strict=True)):
        expected = local((SCENE, picture(1))[place], NAMES)
        assert np.array_equal(outcome.labels, expected.labels)
        assert np.array_equal(other.labels, expected.labels)
    with pytest.raises(ImageError):
        next(client.segment_many(images, NAMES))


def test_with_evidence_the_result_answers_further_questions(client: Client, local: Segmenter) -> None:
    expected, result = local(SCENE, NAMES), client(SCENE, NAMES, evidence=True)
    assert np.array_equal(result.class_scores(), expected.class_scores())
    ids, segments = result.panoptic(["red circle"], 0.1)
    expected_ids, expected_segments = expected.panoptic(["red circle"], 0.1)
    assert np.array_equal(ids, expected_ids)
    assert segments == expected_segments
    assert len(segments) > 0
    assert [found.score for found in result.instances()] == [found.score for found in expected.instances()]


def test_segments_and_panoptic_made_by_the_server(client: Client, local: Segmenter) -> None:
    expected = local(SCENE, NAMES)
    assert client.segments(SCENE, NAMES) == expected.to_json()
    ids, segments = client.panoptic(SCENE, NAMES, things=["red circle", 1], object_mask_threshold=0.1)
    expected_ids, expected_segments = expected.panoptic(["red circle", 1], 0.1)
    assert np.array_equal(ids, expected_ids)
    assert segments == expected_segments
    assert len(segments) > 0


def test_vocabularies_by_name_by_default_and_with_seen_classes_and_templates(client: Client, local: Segmenter) -> None:
    assert np.array_equal(client(SCENE).scores, local(SCENE).scores)
    road = local(SCENE, ["grass", "red circle", "sky"])
    named = client(SCENE, Client.named("road"))
    assert named.classes == road.classes
    assert np.array_equal(named.scores, road.scores)
    special = Vocabulary(NAMES, seen=["grass"], templates=["a picture of a {}.", "a {}"])
    assert np.array_equal(client(SCENE, special).scores, local(SCENE, special).scores)
    assert not np.array_equal(local(SCENE, special).scores, local(SCENE, NAMES).scores)


def test_a_request_may_hold_several_images_of_one_size(server: Running, local: Segmenter) -> None:
    import tritonclient.http as triton

    pixels = np.stack([picture(1), picture(2)])
    names = np.array([[name.encode() for name in NAMES], [name.encode() for name in OTHERS[:3]]], object)
    inputs = [_tensor(triton, "PIXELS", pixels, "UINT8"), _tensor(triton, "CLASSES", names, "BYTES")]
    answer = triton.InferenceServerClient(server.http.removeprefix("http://")).infer("vocabseg", inputs)
    labels, classes = answer.as_numpy("LABELS"), answer.as_numpy("CLASS_NAMES")
    assert np.array_equal(labels[0], local(pixels[0], NAMES).labels)
    assert np.array_equal(labels[1], local(pixels[1], OTHERS[:3]).labels)
    assert [name.decode() for name in classes[1]] == OTHERS[:3]
    assert answer.as_numpy("MASK_LOGITS") is None


def test_requests_with_different_vocabularies_run_in_one_batch(server: Running, local: Segmenter) -> None:
    asked = [(picture(seed, 100 + seed, 130 + 3 * seed), NAMES if seed % 2 else OTHERS) for seed in range(16)]
    batches, images = server.metric("vocabseg_batches_total"), server.metric("vocabseg_images_total")
    with Client(server.http) as client, ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda pair: client(*pair), asked))
    for (image, names), result in zip(asked, results, strict=True):
        assert result.classes == names
        assert np.array_equal(result.scores, local(image, names).scores)
    batches, images = server.metric("vocabseg_batches_total") - batches, server.metric("vocabseg_images_total") - images
    assert images == 16
    assert batches <= 8, f"{batches} batches for 16 requests at once"


def test_awaited_answers_are_the_same(server: Running, local: Segmenter) -> None:
    async def ask(url: str) -> list[Any]:
        async with AsyncClient(url) as client:
            calls = [client(picture(seed), NAMES) for seed in range(4)]
            results = await asyncio.gather(*calls)
            with pytest.raises(VocabularyError, match="road"):
                await client(picture(0), AsyncClient.named("sea"))
            return [*results, await client.segments(picture(0), NAMES)]

    for url in (server.http, server.grpc):
        *results, segments = asyncio.run(ask(url))
        for seed, result in enumerate(results):
            assert np.array_equal(result.scores, local(picture(seed), NAMES).scores)
        assert segments == local(picture(0), NAMES).to_json()


def test_many_images_come_back_in_order(server: Running, local: Segmenter) -> None:
    images = [picture(seed, 64 + seed, 96) for seed in range(20)]
    with Client(server.grpc) as client:
        results = list(client.segment_many(images, NAMES, concurrency=6))
    assert [result.labels.shape for result in results] == [image.shape[:2] for image in images]
    assert np.array_equal(results[19].scores, local(images[19], NAMES).scores)


def test_errors_are_those_of_the_local_segmenter(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be decoded"):
        client(SCENE.read_bytes()[:5000], NAMES)
    with pytest.raises(VocabularyError, match=r"makes a prompt of \d+ tokens"):
        client(SCENE, ["one two three " * 30])
    with pytest.raises(VocabularyError, match="no vocabulary 'sea': it knows road"):
        client(SCENE, Client.named("sea"))
    with pytest.raises(ImageError, match="check the path"):
        client(tmp_path / "missing.png", NAMES)


def test_200_malformed_requests_are_refused_and_good_ones_answered(server: Running, local: Segmenter) -> None:
    good = picture(5)
    expected = local(good, NAMES)
    before = server.model_processes()
    with Client(server.http, retries=0) as over_http, Client(server.grpc, retries=0) as over_grpc:
        for number, bad in enumerate(malformed()):
            client = over_http if number % 2 else over_grpc
            message = refusal(server, bad, "http" if number % 2 else "grpc")
            assert message, f"{bad.name} was answered"
            assert "fault of the server" not in message, f"{bad.name}: {message}"
            assert "\n" not in message.strip()
            assert 10 < len(message) < 600, f"{bad.name}: {message}"
            result = client(good, NAMES)
            assert np.array_equal(result.scores, expected.scores), f"after {bad.name}"
    assert server.model_processes() == before


def test_bodies_that_are_no_requests_are_refused(server: Running) -> None:
    place = server.http.removeprefix("http://")
    path = "/v2/models/vocabseg/infer"
    for body in (b"", b"{", b"[]", b"null", b'{"inputs": 3}', b'{"inputs": [{}]}', b"\xff" * 100, b'{"a":' * 5_000):
        connection = http.client.HTTPConnection(place, timeout=20)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status in (400, 500), body[:20]
        assert b"error" in answer.read()
        connection.close()
    for path in ("/v2/models/other/infer", "/v2/models/vocabseg/versions/7/infer", "/nothing"):
        connection = http.client.HTTPConnection(place, timeout=20)
        connection.request("POST", path, b"{}")
        assert connection.getresponse().status in (400, 404)
        connection.close()
    with Client(server.http, retries=0) as client:
        assert client(picture(1), NAMES).labels.shape == (120, 160)


def test_clients_that_hang_up_free_their_slots(server: Running, local: Segmenter) -> None:
    import tritonclient.grpc as triton

    place = server.grpc.removeprefix("grpc://")
    pixels = np.zeros((1, 1500, 2000, 3), np.uint8)
    connection = triton.InferenceServerClient(place)
    inputs = [_tensor(triton, "PIXELS", pixels, "UINT8")]
    calls = [connection.async_infer("vocabseg", inputs, lambda result, error: None) for _ in range(24)]
    for call in calls:
        call.cancel()
    connection.close()
    header = f"POST /v2/models/vocabseg/infer HTTP/1.1\r\nHost: {place}\r\nContent-Length: 1000000\r\n\r\n".encode()
    port = int(server.http.rpartition(":")[2])
    for sent in (b"", header, header + b"x" * 1000):
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", port)) as half:
                half.sendall(sent)
    begin = time.monotonic()
    with Client(server.http, retries=0, timeout=20) as client:
        result = client(picture(3), NAMES)
    assert np.array_equal(result.scores, local(picture(3), NAMES).scores)
    # All 24 would take more than ten seconds on one core.
    assert time.monotonic() - begin < 8
    server.wait_for("nv_inference_pending_request_count", 0)


def test_clients_that_hang_up_on_whole_requests_leave_nothing_behind(server: Running, local: Segmenter) -> None:
    """HTTP has no way to call a request back: what was sent whole is computed, and its slot is free again."""
    import tritonclient.http as triton

    pixels = np.repeat(np.repeat(picture(5, 100, 100), 8, axis=0), 8, axis=1)[None]
    body, header = triton.InferenceServerClient.generate_request_body([_tensor(triton, "PIXELS", pixels, "UINT8")])
    place, port = server.http.removeprefix("http://"), int(server.http.rpartition(":")[2])
    sent = f"POST /v2/models/vocabseg/infer HTTP/1.1\r\nHost: {place}\r\nContent-Length: {len(body)}\r\n"
    sent += f"Inference-Header-Content-Length: {header}\r\n\r\n"
    before, counted = server.model_processes(), "^vocabseg_images_total"
    images = server.metric(counted)
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(sent.encode() + body)
    with Client(server.http, retries=0, timeout=30) as client:
        result = client(picture(3), NAMES)
    assert np.array_equal(result.scores, local(picture(3), NAMES).scores)
    server.wait_for("nv_inference_pending_request_count", 0)
    server.wait_for(counted, images + 7)
    assert server.model_processes() == before


def test_health_metrics_and_the_dashboards_questions(server: Running) -> None:
    import re

    from vocabseg.serving.model_repository.dashboard import panels

    with Client(server.http) as client:
        assert client.ready()
        client(picture(7), NAMES)
        client(picture(7), NAMES)
    asked = {
        name for _, _, queries in panels("vocabseg") for query, _ in queries for name in re.findall(r"(\w+)\{", query)
    }
    assert len(asked) > 10
    for name in asked:
        assert server.metric(f'^{name}{{.*model="vocabseg"') >= 0
        assert f"# TYPE {name} " in _metrics(server), name
    assert server.metric("vocabseg_regions_total") > server.metric("vocabseg_images_total") > 0
    assert server.metric('names_total.*source="memory"') > 0
    for stage in ("decode", "segment", "answer"):
        assert server.metric(f'stage_seconds_total.*stage="{stage}"') > 0


def test_a_deadline_is_kept_and_said(server: Running) -> None:
    for url in (server.http, server.grpc):
        with Client(url, timeout=0.02) as client:
            begin = time.monotonic()
            with pytest.raises(ServerError, match=r"no answer within 0\.02 s"):
                client(np.zeros((1500, 2000, 3), np.uint8), NAMES)
            assert time.monotonic() - begin < 5
    server.wait_for("nv_inference_pending_request_count", 0)


def refusal(server: Running, bad: Bad, how: str) -> str | None:
    """What the server says to a malformed request; None if it answers it."""
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import InferenceServerException

    triton = tritonclient.http if how == "http" else tritonclient.grpc
    connection = triton.InferenceServerClient(getattr(server, how).partition("://")[2])
    inputs = [_tensor(triton, name, array, kind) for name, (array, kind) in bad.inputs.items()]
    outputs = [triton.InferRequestedOutput(name) for name in bad.outputs or ["LABELS"]]
    try:
        connection.infer("vocabseg", inputs, outputs=outputs, parameters=bad.parameters)
    except InferenceServerException as error:
        return str(error.message())
    finally:
        connection.close()
    return None


def _metrics(server: Running) -> str:
    import urllib.request

    return urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()


def _tensor(triton: Any, name: str, array: np.ndarray, kind: str) -> Any:
    tensor = triton.InferInput(name, list(array.shape), kind)
    tensor.set_data_from_numpy(array)
    return tensor
