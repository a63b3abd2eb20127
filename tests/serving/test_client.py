"""The client without a server: addresses, what it tries again, and what it needs to be imported."""

import subprocess
import sys
import time

import numpy as np
import pytest

from tests.serving.servers import SCENE
from vocabseg.client import Client
from vocabseg.runtime.errors import ServerError, VocabularyError
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving.client.call import Call, segment_call
from vocabseg.serving.client.retries import passes, pauses, translated

triton = pytest.importorskip("tritonclient.utils", reason="tritonclient is not installed")


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://user:secret@host"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ServerError, match="is no address of a server"):
        Client(url)


def test_pauses_double_up_to_a_limit_and_spread_clients() -> None:
    longest, shortest = list(pauses(8, lambda: 1.0)), list(pauses(8, lambda: 0.0))
    assert longest == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert shortest == pytest.approx([wait / 2 for wait in longest])


@pytest.mark.parametrize(
    ("message", "status", "again"),
    [
        ("class name 3 is empty", "400", False),
        ("class name 3 is empty", "StatusCode.INVALID_ARGUMENT", False),
        ("Stub process 'vocabseg_0_0' is not healthy.", "500", True),
        ("Exceeds maximum queue size", "503", True),
        ("Connection refused", "StatusCode.UNAVAILABLE", True),
        ("Request for unknown model: 'vocabseg' is not found", "404", False),
        ("Request for model 'vocabseg': model is not ready", "400", True),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", False),
        ("ValueError: no (a fault of the server)", "500", False),
    ],
)
def test_only_what_passes_is_tried_again(message: str, status: str, again: bool) -> None:
    error = triton.InferenceServerException(message, status)
    assert passes(error) is again
    assert message.partition(":")[0] in str(translated(error, "http://host"))


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_not_there_is_told_after_the_tries(scheme: str) -> None:
    with Client(f"{scheme}://127.0.0.1:9", retries=2) as client:
        begin = time.monotonic()
        with pytest.raises(ServerError, match="does not answer"):
            client(SCENE, ["cat"])
        assert 0.15 < time.monotonic() - begin < 5
        assert not client.ready()


def test_what_is_sent() -> None:
    call = Call(SCENE, "cat, dog", ("LABELS",), {"things": ["cat"], "overlap_threshold": 0.5})
    assert call.inputs["IMAGE"][0, 0] == SCENE.read_bytes()
    assert call.inputs["CLASSES"].tolist() == [[b"cat", b"dog"]]
    assert call.parameters == {"things": '["cat"]', "overlap_threshold": 0.5}


def test_what_is_sent_of_synonyms_and_a_contrast_class() -> None:
    vocabulary = Vocabulary(["cat|kitten", "sky"], other=True, ids=[3, 4])
    call = segment_call(np.zeros((2, 3, 3), np.uint8), vocabulary, False)
    assert call.inputs["CLASSES"].tolist() == [[b"cat|kitten", b"sky"]]
    assert call.parameters == {"other": "true"}
    arrays = {
        "LABELS": np.full((1, 2, 3), 2, np.int32),
        "SCORES": np.ones((1, 2, 3), np.float32),
        "CLASS_NAMES": np.array([[b"cat", b"sky", b"other"]], object),
    }
    assert call.read(arrays).to_json()["segments"][0]["category_id"] == 5
    with pytest.raises(VocabularyError, match="cannot carry example images"):
        segment_call(
            np.zeros((2, 3, 3), np.uint8), Vocabulary.from_images({"a": [np.zeros((2, 3, 3), np.uint8)]}), False
        )


def test_the_client_loads_no_engine_and_no_kernels() -> None:
    code = (
        "import sys; from vocabseg.client import Client; Client('http://127.0.0.1:9').ready(); "
        "heavy = {'onnxruntime', 'openvino', 'cv2', 'torch', 'onnx', 'vocabseg.runtime._host', "
        "'vocabseg.runtime.segmenter.segmenter', 'vocabseg.runtime.kernels'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_tritonclient_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.http", None)
    monkeypatch.delitem(sys.modules, "vocabseg.serving.client.transport", raising=False)
    from vocabseg.runtime.errors import EngineError

    with pytest.raises(EngineError, match=r"pip install 'vocabseg\[serving\]'"):
        Client("http://127.0.0.1:9")
