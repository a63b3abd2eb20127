"""Answers leave as they are made, in their request's order, and few images wait inside the model."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving.answering import workers as workers_module
from vocabseg.serving.answering.requests import ImageRequest
from vocabseg.serving.answering.responder import Responder
from vocabseg.serving.answering.watchdog import Watchdog
from vocabseg.serving.answering.workers import WAITING, Job, Workers
from vocabseg.serving.protocol import RequestLimits, RequestOptions

NAMES = Vocabulary(["grass", "sky"])
SECONDS = 60


def request_for(value: int, size: int = 40) -> ImageRequest:
    image = np.full((size, size, 3), value, np.uint8)
    return ImageRequest(image=image, vocabulary=NAMES, wanted=frozenset(["LABELS"]), options=RequestOptions())


class Gate(Responder):
    """Answers an image with its first pixel, or refuses a black one, once the gate of that pixel is open."""

    def __init__(self, segmenter: Segmenter):
        super().__init__(segmenter, RequestLimits())
        self.gates = {value: threading.Event() for value in range(256)}
        self.begun: list[int] = []

    def answer(self, requests: Iterable[ImageRequest], settle: Callable[[int, Any], None], gone: Any = None) -> None:
        for index, request in enumerate(requests):
            value = int(request.image[0, 0, 0])  # type: ignore[index, call-overload]
            self.begun.append(value)
            assert self.gates[value].wait(SECONDS)
            settle(index, {"LABELS": np.array(value)} if value else ImageError("black"))


class Desk:
    """Workers with what they send and show."""

    def __init__(self, responder: Responder):
        self.sent: list[Any] = []
        self.running: list[int] = []
        self.shown: list[int] = []  # how many answers had been sent by then
        self.idle = threading.Event()
        self.workers = Workers(responder, Watchdog(SECONDS), self._run, lambda: self.shown.append(len(self.sent)))

    def _run(self, count: int) -> None:
        self.running.append(count)
        if count == 0:
            self.idle.set()

    def job(self, *values: int) -> Job:
        return Job([request_for(value) for value in values], lambda: False, self.sent.append)


def values(sent: list[Any]) -> list[Any]:
    return [found if isinstance(found, Exception) else [int(part["LABELS"]) for part in found] for found in sent]


@pytest.fixture
def gate(local: Segmenter, monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setenv("VOCABSEG_THREADS", "2")
    return Gate(local)


def test_an_answer_does_not_wait_for_others_of_its_batch(gate: Gate) -> None:
    desk = Desk(gate)
    desk.workers.put([desk.job(1), desk.job(2)])
    gate.gates[2].set()
    while not desk.sent:
        assert not desk.idle.wait(0.01)
    assert values(desk.sent) == [[2]]
    gate.gates[1].set()
    assert desk.idle.wait(SECONDS)
    desk.workers.close()
    assert values(desk.sent) == [[2], [1]]
    assert (desk.running[0], desk.running[-1]) == (2, 0)
    assert 1 in desk.shown  # before the last answer, so that who has it finds it counted


def test_the_last_of_answers_that_leave_together_is_counted_before_it_leaves(gate: Gate) -> None:
    desk = Desk(gate)
    together = threading.Barrier(2)
    jobs = [desk.job(1), desk.job(2)]
    for job in jobs:
        job.send = lambda found: (together.wait(SECONDS), desk.sent.append(found))[1]
    gate.gates[1].set(), gate.gates[2].set()
    desk.workers.put(jobs)
    assert desk.idle.wait(SECONDS)
    desk.workers.close()
    assert desk.shown == [0, 2]


def test_figures_that_cannot_be_shown_keep_no_answer_back(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise OSError("no room")

    desk = Desk(gate)
    monkeypatch.setattr(desk.workers, "_show", failing)
    gate.gates[1].set()
    desk.workers.put([desk.job(1)])
    assert desk.idle.wait(SECONDS)
    desk.workers.close()
    assert values(desk.sent) == [[1]]


def test_images_of_a_request_are_answered_together_in_order_or_with_the_first_error(gate: Gate) -> None:
    desk = Desk(gate)
    desk.workers.put([desk.job(1, 2, 3)])
    for value in (3, 2, 1):
        gate.gates[value].set()
    assert desk.idle.wait(SECONDS)
    assert values(desk.sent) == [[1, 2, 3]]
    desk.idle.clear()
    gate.gates[0].set()
    desk.workers.put([desk.job(1, 0, 2)])
    assert desk.idle.wait(SECONDS)
    desk.workers.close()
    assert str(desk.sent[1]) == "black"


def test_what_does_not_fit_waits_outside_and_all_is_answered_before_the_end(gate: Gate) -> None:
    desk = Desk(gate)
    count = gate.parallel + WAITING + 3
    putting = threading.Thread(target=desk.workers.put, args=([desk.job(value) for value in range(1, count + 1)],))
    putting.start()
    while len(gate.begun) < gate.parallel or desk.workers._queue.qsize() < WAITING:
        assert putting.is_alive()
        threading.Event().wait(0.01)
    putting.join(0.1)
    assert putting.is_alive()
    assert len(gate.begun) == gate.parallel
    gate.gates[gate.begun[0]].set()
    for event in gate.gates.values():
        event.set()
    putting.join(SECONDS)
    desk.workers.close()
    assert sorted(found[0] for found in values(desk.sent)) == list(range(1, count + 1))
    assert desk.running[-1] == 0


@pytest.mark.parametrize("raised", [OSError("no room"), None])
def test_what_a_responder_leaves_is_answered_with_an_error_and_what_follows_as_always(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, raised: Exception | None
) -> None:
    answer = gate.answer

    def leaving(requests: Iterable[ImageRequest], settle: Callable[[int, Any], None], gone: Any) -> None:
        monkeypatch.setattr(gate, "answer", answer)
        next(iter(requests))
        if raised is not None:
            raise raised

    gate.parallel = 1
    for event in gate.gates.values():
        event.set()
    monkeypatch.setattr(gate, "answer", leaving)
    desk = Desk(gate)
    desk.workers.put([desk.job(1, 2), desk.job(3)])
    assert desk.idle.wait(SECONDS)
    desk.workers.close()
    failed, other = desk.sent
    assert str(failed) == str(raised or "the model gave no answer")
    assert values([other]) == [[3]]
    assert gate.statistics.rejected == 1


def test_triton_is_asked_of_clients_only_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job([request_for(1)], lambda: True, print)
    assert not job.gone()
    monkeypatch.setattr(workers_module, "ASK_AFTER", 0.0)
    assert job.gone()


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_real_model_answers_what_it_answers_alone(
    local: Segmenter, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("VOCABSEG_THREADS", threads)
    desk = Desk(Responder(local, RequestLimits()))
    desk.workers.put([desk.job(value) for value in (10, 90, 170)])
    assert desk.idle.wait(SECONDS)
    desk.workers.close()
    assert len(desk.sent) == 3
    expected = [local(request_for(value).image, NAMES).labels for value in (10, 90, 170)]
    for labels in expected:
        assert any(np.array_equal(found[0]["LABELS"], labels) for found in desk.sent)
