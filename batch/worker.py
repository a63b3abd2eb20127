"""The worker: one process with a model, which turns planned shards into committed ones.

It survives broken images (they go to the shard's error table) and, as Ray restarts it, its own death. An image that
kills the process would do so again and again: so `work/<attempt>.progress` says how far an attempt is, an attempt that
follows a death takes one image at a time, and an image at which such attempts died twice goes to the error table.
A process that dies while it opens the model leaves `work/<machine>-<process>.opening`; the third such death in a row
ends the run.
"""

import contextlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vocabseg.batch.inputs.items import Item
from vocabseg.batch.job import WORK, Job, read_record
from vocabseg.batch.shard import ShardCounts, ShardWriter, is_committed, read_counts
from vocabseg.batch.shard_plan import PlannedShard, read_shard
from vocabseg.runtime.errors import EngineError, ImageError, VocabsegError

if TYPE_CHECKING:
    from vocabseg.runtime.segmenter.segmenter import Segmenter

# Images read ahead; with the size of the largest image, this bounds the worker's memory.
AHEAD = 3
READERS = 2
# Deaths of one-at-a-time attempts at an image after which it is left out.
DEATHS = 2
# Deaths of a machine's processes while they open the model, one after the other, after which the run stops.
OPENINGS = 3
# Images in a row that fail through no fault of their own before the whole run stops.
FAULTS = 5


class AttemptState(NamedTuple):
    """How far an attempt at a shard is: `done` images; if `careful`, it takes one at a time, and `place` is next."""

    shard: int
    done: int
    careful: bool
    place: int


class ShardWorker:
    """Ray's actor. Faults come back as rows: an exception would be wrapped in a page of Ray's own."""

    def __init__(self, job: Job):
        self._job = job
        self._fault = ""
        self._segmenter: Segmenter | None = None
        os.environ["VOCABSEG_THREADS"] = str(job.threads)
        try:
            with _opening(job.output / WORK):
                self._segmenter = open_segmenter(job)
        except VocabsegError as error:
            self._fault = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a shard (a row of PlannedShard) unless it exists; returns its counts, or a fault that stops the run."""
        counts = None
        if self._segmenter is not None and not self._fault:
            try:
                counts = write_shard(self._job, self._segmenter, PlannedShard(**row))
            except VocabsegError as error:
                self._fault = str(error)
            except OSError as error:
                self._fault = f"cannot work in {str(self._job.output)!r}: {error.strerror or error}"
        if counts is None:
            return {"images": 0, "broken": 0, "fault": self._fault}
        return {"images": counts.images, "broken": counts.broken, "fault": ""}


@contextlib.contextmanager
def _opening(work: Path) -> Iterator[None]:
    """Marks that this process opens the model; raises EngineError if others died at it, which Ray would repeat forever.

    What has died here by then does not count any more once one process has opened it.
    """
    machine = os.uname().nodename
    died = [path for path in work.glob(f"{machine}-*.opening") if not _runs(int(path.stem.rpartition("-")[2]))]
    if len(died) >= OPENINGS:
        raise EngineError(
            f"on {machine} the worker process died {len(died)} times while it opened the model: give fewer --workers "
            "if memory is short, or another --engine"
        )
    marker = work / f"{machine}-{os.getpid()}.opening"
    with contextlib.suppress(FileNotFoundError):  # the folder is another driver's by now, which has cleared it
        marker.touch()
    yield
    for path in (*died, marker):
        path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def open_segmenter(job: Job) -> "Segmenter":
    """The job's segmenter, with its names embedded; raises EngineError if this machine differs from the others."""
    if read_record(job.output).engine != job.engine_key:
        raise EngineError(f"{job.output} is another folder on {os.uname().nodename}: use one that all machines share")
    segmenter = job.segmenter()
    key = segmenter.choice.key
    if key != job.engine_key:
        raise EngineError(
            f"{os.uname().nodename} would run {key}, the others {job.engine_key}: give an --engine, a --device and a "
            "--precision that every machine has"
        )
    segmenter.embed_names(job.vocabulary)
    return segmenter


def write_shard(job: Job, segmenter: "Segmenter", shard: PlannedShard) -> ShardCounts:
    """Segment the images of a shard and commit it, unless that is done already; returns its counts."""
    if is_committed(job.output, shard.number):
        return read_counts(job.output, shard.number)
    items = read_shard(job.output, shard)
    earlier = [attempt for attempt in read_attempts(job.output) if attempt.shard == shard.number]
    writer = ShardWriter(job.output, shard.number, job.write)
    marker = job.output / WORK / f"{writer.attempt}.progress"
    try:
        with marker.open("wb", buffering=0) as file:
            _Attempt(job, segmenter, writer, file, earlier).run(items)
        counts = writer.commit()
    except BaseException:
        writer.discard()
        marker.unlink(missing_ok=True)
        raise
    for path in (job.output / WORK).glob(f"{shard.number:07d}-*.progress"):
        path.unlink(missing_ok=True)
    return counts


def read_attempts(output: Path) -> list[AttemptState]:
    """The attempts under way, and those whose process died."""
    found = []
    for path in (output / WORK).glob("*.progress"):
        try:
            done, careful, place = path.read_text().split()
            found.append(AttemptState(int(path.name[:7]), int(done), careful == "1", int(place)))
        except (OSError, ValueError):  # gone by now, or nothing written yet
            continue
    return found


class _Attempt:
    """One attempt at the images of a shard."""

    def __init__(
        self, job: Job, segmenter: "Segmenter", writer: ShardWriter, marker: Any, earlier: Sequence[AttemptState]
    ):
        self._job = job
        self._segmenter = segmenter
        self._writer = writer
        self._marker = marker
        self._careful = bool(earlier)
        deaths = Counter(attempt.place for attempt in earlier if attempt.careful)
        self._deadly = {place for place, count in deaths.items() if count >= DEATHS}
        self._faults = 0

    def run(self, items: Sequence[Item]) -> None:
        self._mark(0)  # before the first image: it may be the one that ends the process
        start = 0
        while start < len(items):
            start = self._stretch(items, start)

    def _stretch(self, items: Sequence[Item], start: int) -> int:
        """Segment images from `start` on until one fails through no fault of its own; returns where to go on."""
        if self._careful:
            self._mark(start)
            if start in self._deadly:
                self._error(items[start], "crash", f"the worker process died {DEATHS} times at this image")
                return start + 1
        stop = start + 1 if self._careful else len(items)
        readable: deque[int] = deque()
        place = start
        try:
            pictures = self._pictures(items, start, stop, readable)
            for result in self._segmenter.segment_many(pictures, self._job.vocabulary):
                self._writer.add(items[readable[0]], result)
                place = readable.popleft() + 1
                self._faults = 0
                self._advance()
        except VocabsegError:
            raise  # engine, bundle or output: not the image's fault
        except Exception as error:
            failed = readable.popleft() if readable else place
            self._faults += 1
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if self._faults >= FAULTS:
                raise EngineError(f"{FAULTS} images in a row failed, the last with {reason}") from error
            self._error(items[failed], "fault", reason)
            return failed + 1
        return stop

    def _pictures(self, items: Sequence[Item], start: int, stop: int, readable: deque[int]) -> Iterator[np.ndarray]:
        """The decoded images, read a few ahead; broken ones go straight to the error table."""
        with ThreadPoolExecutor(READERS, "read") as pool:
            coming: deque[tuple[int, Future[np.ndarray]]] = deque()
            following = start
            while following < stop or coming:
                while following < stop and len(coming) < AHEAD:
                    coming.append((following, pool.submit(_decoded, items[following])))
                    following += 1
                place, future = coming.popleft()
                try:
                    picture = future.result()
                except ImageError as error:
                    self._error(items[place], "image", str(error))
                    continue
                readable.append(place)
                yield picture

    def _error(self, item: Item, kind: str, reason: str) -> None:
        self._writer.add_error(item, kind, reason)
        self._advance()

    def _advance(self) -> None:
        if not self._careful:
            self._mark(0)

    def _mark(self, place: int) -> None:
        """Not flushed to the disk: it must outlive the process, not the machine."""
        os.pwrite(self._marker.fileno(), f"{self._writer.done:8d} {int(self._careful)} {place:8d}".encode(), 0)


def _decoded(item: Item) -> np.ndarray:
    from vocabseg.runtime.images import load_image

    if item.offset is None:
        return load_image(item.path)
    try:
        content = item.read()
    except OSError as error:
        raise ImageError(f"cannot read {item.path!r}: {error.strerror or error}; check the path") from error
    try:
        return load_image(content)
    except ImageError as error:
        raise ImageError(str(error).replace("the image file given as bytes", repr(item.id))) from error
