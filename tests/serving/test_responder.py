"""Requests answered together, without a server: each as if it had come alone, and none harmed by another."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.serving.servers import SCENE
from vocabseg.runtime.errors import EngineError, ImageError, VocabularyError
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving.answering.requests import ImageRequest, RequestError
from vocabseg.serving.answering.responder import Responder
from vocabseg.serving.protocol import RequestLimits, RequestOptions

FEW, OTHERS = Vocabulary(["grass", "red circle"]), Vocabulary(["sky", "blue square", "sand"])
OPTIONS = RequestOptions()


def request_for(image: Any, vocabulary: Vocabulary = FEW, *wanted: str) -> ImageRequest:
    return ImageRequest(image=image, vocabulary=vocabulary, wanted=frozenset(wanted or ["SCORES"]), options=OPTIONS)


def answers_of(responder: Responder, requests: list[ImageRequest], gone: bool = False) -> list[Any]:
    found: dict[int, Any] = {}
    responder.answer(requests, found.__setitem__, lambda index: gone)
    return [found[index] for index in range(len(requests))]


@pytest.fixture(params=["1", "3"])
def responder(local: Segmenter, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Responder]:
    """On one thread stages overlap; on several, images run side by side."""
    monkeypatch.setenv("VOCABSEG_THREADS", request.param)
    made = Responder(local, RequestLimits(max_pixels=200_000))
    yield made
    made.close()


def test_good_and_bad_requests_of_several_vocabularies(responder: Responder, local: Segmenter) -> None:
    scene = SCENE.read_bytes()
    small = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    too_long = Vocabulary(["one two three " * 30])
    requests = [
        request_for(scene), request_for(scene[:3000]), request_for(small, OTHERS), request_for(small, too_long),
        request_for(scene, OTHERS, "LABELS"),
        request_for(np.zeros((500, 500, 3), np.uint8)), request_for(small, FEW),
    ]  # fmt: skip
    answers = answers_of(responder, requests)
    assert [type(answer) for answer in answers] == [dict, ImageError, dict, VocabularyError, dict, ImageError, dict]
    assert np.array_equal(answers[0]["SCORES"], local(SCENE, FEW).scores)
    assert np.array_equal(answers[2]["SCORES"], local(small, OTHERS).scores)
    assert np.array_equal(answers[4]["LABELS"], local(SCENE, OTHERS).labels)
    assert np.array_equal(answers[6]["SCORES"], local(small, FEW).scores)
    assert (responder.statistics.images, responder.statistics.rejected) == (4, 3)
    assert responder.statistics.regions > 0


def test_an_engine_that_fails_once_costs_one_answer_at_most(responder: Responder, local: Segmenter) -> None:
    engine = local.engine("image_encoder")
    run, calls = engine.run, []

    def failing(inputs: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise EngineError("out of memory")
        return run(inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "run", failing)
        answers = answers_of(responder, [request_for(SCENE.read_bytes()) for _ in range(4)])
    expected = local(SCENE, FEW).scores
    # The image in whose turn it failed is run again, alone, as all behind it.
    assert all(np.array_equal(answer["SCORES"], expected) for answer in answers)


def test_what_fails_before_it_takes_an_image_is_told_for_every_image(
    responder: Responder, local: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a bundle without proposals, which is no reason to try for ever."""

    def failing(pairs: Any) -> Iterator[Any]:
        raise EngineError("no proposals")
        yield from pairs

    monkeypatch.setattr(type(local), "small", False)
    monkeypatch.setattr(local, "segment_pairs", failing)
    answers = answers_of(responder, [request_for(SCENE.read_bytes()) for _ in range(5)])
    assert [str(answer) for answer in answers] == ["no proposals"] * 5


def test_large_models_answer_while_requests_still_come(
    responder: Responder, local: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(local), "small", False)
    answers: dict[int, Any] = {}
    known: list[int] = []

    def coming() -> Iterator[ImageRequest]:
        for _ in range(8):
            known.append(len(answers))
            yield request_for(SCENE.read_bytes())

    responder.answer(coming(), answers.__setitem__)
    assert known[0] == 0
    assert 0 < known[-1] < 8
    expected = local(SCENE, FEW).scores
    assert all(np.array_equal(answers[index]["SCORES"], expected) for index in range(8))


def test_nothing_is_computed_for_clients_that_have_gone(responder: Responder, local: Segmenter) -> None:
    before = local.engine("proposal").seconds
    answers = answers_of(responder, [request_for(SCENE.read_bytes()), request_for(SCENE.read_bytes())], gone=True)
    assert [type(answer) for answer in answers] == [ImageError, ImageError]
    assert local.engine("proposal").seconds == before


def test_a_client_that_cannot_be_asked_about_costs_no_answer_of_others(responder: Responder, local: Segmenter) -> None:
    answers: dict[int, Any] = {}

    def gone(index: int) -> bool:
        if index == 1:
            raise OSError("no message gets through")
        return False

    responder.answer([request_for(SCENE.read_bytes()) for _ in range(3)], answers.__setitem__, gone)
    expected = local(SCENE, FEW).scores
    assert all(np.array_equal(answers[index]["SCORES"], expected) for index in (0, 2))
    assert str(answers[1]) == "no message gets through"
    assert (responder.statistics.images, responder.statistics.rejected) == (2, 1)


def test_answers_of_different_sizes_do_not_stack() -> None:
    from vocabseg.serving.answering.answers import stack

    with pytest.raises(RequestError, match="send each in a request of its own"):
        stack([{"LABELS": np.zeros((2, 3))}, {"LABELS": np.zeros((3, 2))}])
