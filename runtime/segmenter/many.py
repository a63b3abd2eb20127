"""Many images: what runs in parallel, and how far ahead of the consumer of the results."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from vocabseg.runtime.errors import DeviceMemoryError, ImageError, VocabsegError
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.regions import Regions
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.runtime.threads import limit_threads

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.cuda_answers import PendingResult
    from vocabseg.runtime.segmenter.cuda_proposals import DeviceProposals, Part
    from vocabseg.runtime.segmenter.cuda_stages import CudaStages

# On a GPU: decoder threads, images whose proposals are found ahead of the one being encoded, images whose regions may
# wait for a full batch, and results being copied to the host.
DECODERS = 4
PROPOSED_AHEAD = 2
WAITING = 8
RESULTS = 4

Item = TypeVar("Item")
Found = TypeVar("Found")
Pairs = Iterable[tuple[Any, Vocabulary]]
Outcome = Result | VocabsegError  # what became of one image


def attempt(work: Callable[..., Found], *given: Any) -> Found | VocabsegError:
    """What `work` returns, or the error if the image is at fault: it cannot be read, or is too large for the memory."""
    try:
        return work(*given)
    except (ImageError, DeviceMemoryError) as error:
        return error


def side_by_side(segment: Callable[[tuple[Any, Vocabulary]], Result], pairs: Pairs, threads: int) -> Iterator[Outcome]:
    """Segment as many images at a time as there are threads, each on a single thread."""
    with ThreadPoolExecutor(threads, "images", limit_threads, (1,)) as pool:
        yield from _in_order(pool, lambda pair: attempt(segment, pair), pairs, threads)


def one_ahead(
    propose: Callable[[Any], Found], finish: Callable[[Found, Vocabulary], Result], pairs: Pairs
) -> Iterator[Outcome]:
    """While `finish` encodes one image's regions, `propose` reads the next image and finds its proposals."""
    with ThreadPoolExecutor(1, "proposals") as pool:
        for found, vocabulary in _in_order(pool, lambda pair: (attempt(propose, pair[0]), pair[1]), pairs, 1):
            yield found if isinstance(found, VocabsegError) else attempt(finish, found, vocabulary)


def _in_order(pool: Executor, work: Callable[[Item], Found], items: Iterable[Item], count: int) -> Iterator[Found]:
    """`work` of every item, in order, `count` items ahead of the consumer; an error of `items` is raised last."""
    coming: deque[Future[Found]] = deque()
    source, failure = iter(items), None
    try:
        while failure is None:
            try:
                coming.append(pool.submit(work, next(source)))
            except Exception as error:
                failure = error
            if len(coming) > count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
        if not isinstance(failure, StopIteration):
            raise failure
    finally:
        for future in coming:
            future.cancel()


class Line:
    """Images in progress on a GPU, from decoding to results; regions of several images are encoded in one batch."""

    def __init__(self, stages: "CudaStages", regions_of: "Callable[[DeviceProposals], Regions]"):
        self._stages, self._regions_of = stages, regions_of
        self._encodes = stages.bundle.manifest.encodes
        self._vocabularies: deque[Vocabulary] = deque()  # of the images that are not classified yet
        self._proposed: deque[DeviceProposals] = deque()  # proposals being computed
        self._waiting: deque[DeviceProposals] = deque()  # regions not all encoded
        self._parts: list[Part] = []  # the batch that is being filled
        self._filled = 0
        self._pending: deque[PendingResult] = deque()

    def segment(self, pairs: Pairs) -> Iterator[Outcome]:
        """The outcomes in order; an error of `pairs` itself is raised when its turn comes."""
        workers = min(DECODERS, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers, "decode") as pool:
            try:
                loaded = _in_order(
                    pool, lambda pair: (attempt(self._stages.load, pair[0]), pair[1]), pairs, workers + PROPOSED_AHEAD
                )
                while True:
                    try:
                        image, vocabulary = next(loaded, (None, None))
                    except Exception:
                        yield from self._rest()
                        raise
                    if vocabulary is None:
                        break
                    proposals = image if isinstance(image, VocabsegError) else attempt(self._start, image)
                    if isinstance(proposals, VocabsegError):
                        yield from self._rest()
                        yield proposals
                        continue
                    self._put(proposals, vocabulary)
                    yield from self._results(RESULTS)
                yield from self._rest()
            finally:
                self._leave()

    def _start(self, image: Any) -> "DeviceProposals":
        stages = self._stages
        with stages.turn():
            proposals = stages.propose(stages.prepare(image))
            stages.describe(proposals)
            return proposals

    def _put(self, proposals: "DeviceProposals", vocabulary: Vocabulary) -> None:
        """Take an image whose proposals are being computed, and advance those before it."""
        with self._stages.turn():
            self._vocabularies.append(vocabulary)
            self._proposed.append(proposals)
            while len(self._proposed) > PROPOSED_AHEAD:
                self._pack(self._proposed.popleft())

    def _results(self, most: int) -> Iterator[Result]:
        """Completed results, and further ones while more than `most` are pending."""
        while self._pending and (len(self._pending) > most or self._pending[0].done.query()):
            yield self._pending.popleft().result()

    def _rest(self) -> Iterator[Result]:
        """All remaining results, in order."""
        with self._stages.turn():
            while self._proposed:
                self._pack(self._proposed.popleft())
            self._encode()
        yield from self._results(-1)

    def _leave(self) -> None:
        """Release what abandoned images hold, unless the process is ending."""
        if self._stages.device.closed:
            return
        with self._stages.turn():
            for proposals in itertools.chain(self._proposed, self._waiting):
                self._stages.release(proposals)
        self._proposed.clear()
        self._waiting.clear()

    def _pack(self, proposals: "DeviceProposals") -> None:
        """Add an image's regions to the batch; encode whenever it is full or too many images wait for it."""
        self._waiting.append(proposals)
        if self._encodes:
            first, count = 0, proposals.table.crops()
            while first < count:
                taken = min(count - first, self._stages.crops.rows - self._filled)
                self._parts.append((proposals, first, taken, self._filled))
                self._filled += taken
                first += taken
                if self._filled == self._stages.crops.rows:
                    self._encode()
            if len(self._waiting) > WAITING:
                self._encode()
        self._classify()

    def _encode(self) -> None:
        parts, self._parts, self._filled = self._parts, [], 0
        if parts:
            self._stages.within_memory(self._stages.crops.encode_parts, parts)
        self._classify()

    def _classify(self) -> None:
        """Classify the images at the front whose regions are all encoded."""
        while self._waiting:
            proposals = self._waiting[0]
            if self._encodes and proposals.encoded < proposals.table.crops():
                return
            self._waiting.popleft()
            if self._encodes:
                self._stages.crops.prepare_embeddings(proposals)
            pending: Any = self._regions_of(proposals).start_classify(self._vocabularies.popleft())
            self._pending.append(pending)
