"""Takes requests from Triton's batches and answers each as soon as it can, while further ones come in.

Were a batch answered as a whole, cores would idle until its last image is done.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from vocabseg.runtime.threads import limit_threads
from vocabseg.serving.answering.answers import Tensors
from vocabseg.serving.answering.requests import ImageRequest
from vocabseg.serving.answering.responder import Answer, Responder
from vocabseg.serving.answering.watchdog import Watchdog

# Images that wait here, so that the next ones are at hand while Triton forms a batch. All others wait in Triton, which
# knows their deadlines and how many there may be.
WAITING = 4
# Seconds after which Triton is asked whether a client has gone, which takes a message to its process and back.
ASK_AFTER = 0.1


class Job:
    """A client's request: its images, and whether the client has gone; `send` gets all tensors, or the first error."""

    def __init__(
        self,
        images: Sequence[ImageRequest],
        gone: Callable[[], bool],
        send: Callable[[list[Tensors] | Exception], None],
    ):
        self.images = images
        self.send = send
        self.since = time.monotonic()
        self._gone = gone
        self._answers: dict[int, Answer] = {}
        self._lock = threading.Lock()

    def gone(self) -> bool:
        """Whether the client no longer waits; taken to wait for the first moments."""
        return time.monotonic() - self.since > ASK_AFTER and self._gone()

    def settle(self, index: int, answer: Answer) -> list[Tensors] | Exception | None:
        """Take the answer for an image; returns what is to be sent, or None while other images are missing."""
        with self._lock:
            self._answers[index] = answer
            if len(self._answers) < len(self.images):
                return None
        answers = [self._answers[index] for index in range(len(self.images))]
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        return errors[0] if errors else [answer for answer in answers if not isinstance(answer, Exception)]


class Workers:
    """Threads that answer jobs.

    `running(count)` is told how many jobs are unanswered, when jobs are put and when none is left. `show()` is called
    just before the last of them is answered, so that who has the answer finds it counted, and just after; where it
    fails, answers are sent all the same.
    """

    def __init__(
        self, responder: Responder, watchdog: Watchdog, running: Callable[[int], None], show: Callable[[], None]
    ):
        self._responder = responder
        self._watchdog = watchdog
        self._running = running
        self._show = show
        self._queue: queue.Queue[tuple[Job, int] | None] = queue.Queue(max(WAITING, responder.parallel))
        self._unanswered = 0
        self._unsettled = 0  # of these, jobs whose answer is not yet complete
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(responder.parallel)]
        for thread in self._threads:
            thread.start()

    def put(self, jobs: Sequence[Job]) -> None:
        """Returns once few enough of their images wait."""
        with self._lock:
            self._unanswered += len(jobs)
            self._unsettled += len(jobs)
            self._running(self._unanswered)
        for job in jobs:
            for index in range(len(job.images)):
                self._queue.put((job, index))

    def close(self) -> None:
        """Answer what has been put, and end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        if self._responder.parallel > 1:
            limit_threads(1)
        while (first := self._queue.get()) is not None:
            taken: dict[int, tuple[Job, int]] = {}

            def settle(number: int, answer: Answer, taken: dict[int, tuple[Job, int]] = taken) -> None:
                self._settle(*taken.pop(number), answer)

            def gone(number: int, taken: dict[int, tuple[Job, int]] = taken) -> bool:
                self._watchdog.moved()
                return taken[number][0].gone()

            with self._watchdog:
                failure: Exception = RuntimeError("the model gave no answer")
                try:
                    self._responder.answer(self._images(first, taken), settle, gone)
                except Exception as error:  # nobody else would answer what was taken, nor what is still to come
                    traceback.print_exc()
                    failure = error
                self._responder.statistics.add(rejected=len(taken))
                for number in list(taken):
                    settle(number, failure)

    def _images(self, first: tuple[Job, int], taken: dict[int, tuple[Job, int]]) -> Iterator[ImageRequest]:
        """The first image and all that wait; it ends when none does, so that nothing is held back for the next."""
        following: tuple[Job, int] | None = first
        number = 0
        while following is not None:
            job, index = taken[number] = following
            number += 1
            yield job.images[index]
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                return
        self._queue.put(None)  # for the loop around this

    def _settle(self, job: Job, index: int, answer: Answer) -> None:
        found = job.settle(index, answer)
        if found is None:
            return
        self._responder.statistics.add(request_seconds=time.monotonic() - job.since)
        with self._lock:
            self._unsettled -= 1
            last = not self._unsettled
        if last:
            self._tell(self._show)
        job.send(found)
        with self._lock:
            self._unanswered -= 1
            if not self._unanswered:
                self._tell(self._show)
                self._tell(self._running, 0)

    def _tell(self, told: Callable[..., None], *figures: int) -> None:
        """Figures that do not get through must not keep an answer back."""
        try:
            told(*figures)
        except Exception:
            traceback.print_exc()
