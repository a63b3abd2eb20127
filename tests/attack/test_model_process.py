"""One client's request must not keep the others waiting: names, templates, and steps that never end."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vocabseg.runtime.bundle.manifest import PromptSpec
from vocabseg.runtime.errors import ImageError, VocabularyError
from vocabseg.runtime.segmenter.opening import load
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving.answering.requests import ImageRequest, RequestReader
from vocabseg.serving.answering.responder import Responder
from vocabseg.serving.protocol import CLASSES, PIXELS, NamedVocabulary, RequestLimits, RequestOptions

PICTURE = np.zeros((1, 10, 20, 3), np.uint8)
STUCK = """
import threading
from vocabseg.serving.answering.watchdog import Watchdog
with Watchdog(0.2):
    pass
with Watchdog(1) as watchdog:
    for _ in range(20):
        threading.Event().wait(0.1)
        watchdog.moved()
    print("moved", flush=True)

    def move():
        with watchdog:
            while True:
                threading.Event().wait(0.1)
                watchdog.moved()

    threading.Thread(target=move, daemon=True).start()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""


def names(count: int) -> np.ndarray:
    return np.array([[f"name {index}".encode() for index in range(count)]], object)


def read(count: int, prompts: tuple[PromptSpec, ...] = (), **parameters: str) -> ImageRequest:
    named = {"big": NamedVocabulary(names=[f"name {index}" for index in range(500)], templates=["a {}"])}
    reader = RequestReader(RequestLimits(max_prompts=100, max_name_length=20), named, prompts)
    inputs = {PIXELS: PICTURE, CLASSES: names(count)} if count else {PIXELS: PICTURE}
    return reader.read(inputs, parameters, [])[0]


def test_names_times_templates_are_limited() -> None:
    five = '["a {}", "b {}", "c {}", "d {}", "e {}"]'
    assert len(read(20, templates=five).vocabulary) == 20
    with pytest.raises(VocabularyError, match="21 class names with 5 prompts each are more than 100 prompts"):
        read(21, templates=five)
    single, double = (PromptSpec(graph="text", kind="custom", templates=["a {}", "b {}"][:count]) for count in (1, 2))
    assert len(read(100, (single, single)).vocabulary) == 100
    assert len(read(33, (single, double)).vocabulary) == 33
    with pytest.raises(VocabularyError, match="34 class names with 3 prompts each"):
        read(34, (single, double))
    assert len(read(0, vocabulary="big").vocabulary) == 500  # the operator's
    with pytest.raises(VocabularyError, match="500 class names with 1 prompts each"):
        read(0, vocabulary="big", templates='["the {}"]')
    with pytest.raises(VocabularyError, match="a template of names has 33 characters, more than 20"):
        read(1, templates=f'["{"a" * 30} {{}}"]')


@pytest.fixture
def responder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Responder]:
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path))
    made = Responder(load(), RequestLimits())
    yield made
    made.close()


def test_names_are_encoded_only_while_someone_waits(responder: Responder) -> None:
    vocabulary = Vocabulary([f"name {index}" for index in range(640)])
    wanted, options = frozenset(["LABELS"]), RequestOptions()
    request = ImageRequest(image=PICTURE[0], vocabulary=vocabulary, wanted=wanted, options=options)
    segmenter: Segmenter = responder.segmenter
    asked: list[int] = []

    def gone(index: int) -> bool:
        asked.append(index)
        return index == 0 or len(asked) > 6

    answers: dict[int, Any] = {}
    responder.answer([request, request], answers.__setitem__, gone)
    assert [type(answers[index]) for index in range(2)] == [ImageError, ImageError]
    encoded = segmenter.text.counts["encoded"]
    assert 64 <= encoded <= 192
    # Whoever comes later finds what was encoded by then.
    responder.answer([request], answers.__setitem__)
    assert isinstance(answers[0], dict)
    assert segmenter.text.counts["memory"] >= encoded
    assert segmenter.text.counts["encoded"] == 640


def test_a_step_that_never_ends_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "moved\n")
    assert "Timeout" in done.stderr
