"""The driver: plans, gives the shards to workers on Ray, and follows them.

What rests on what:
  no image lost        the plan (`plan.py`), written before the work: a run has ended when each planned shard is there
  no image doubled     ids are checked when they are planned, and a shard takes its place by a rename that only the
                       first of several writers can do (`shard.py`)
  same outputs         a shard's images stand in the plan, and nothing in it depends on who wrote it or when
  workers that die     Ray starts an actor anew and gives it its shards again; what was committed is skipped
  a driver that dies   the next one takes what is planned and not committed; locally the workers end with their driver
  bounded memory       through Ray go only the shards' numbers and counts, and Ray Data hands an actor two blocks of
                       them at a time (its back-pressure); the actor reads its images itself, a few ahead
So Ray is trusted with giving out work at least once, and the file system with the rest.
"""

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vocabseg.batch.inputs import Item
from vocabseg.batch.job import WORK, Job, check_names, claimed, settle
from vocabseg.batch.plan import Planned, PlannedShard, extend_plan
from vocabseg.batch.shard import ERRORS, committed, shard_folder
from vocabseg.runtime.errors import EngineError

# Called as progress(done, total, rate): images, and images per second once there is a first.
Progress = Callable[[int, int, float | None], None]

# Bytes of Ray's shared memory: only numbers go through it. (Ray's least is 75 MB.)
OBJECT_STORE_BYTES = 100_000_000
# Blocks of shards that Ray Data is given; each is one task of an actor, and one to be repeated when it dies.
BLOCKS = 2000
SECONDS_PER_LOOK = 0.5
# The C library's default, 8 arenas for a core, lets a worker of many threads grow by half over its first 1,000 images.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
# Seconds until a cluster that does not answer counts as not there. (Ray itself would try for ever.)
TIMEOUT = 10.0
# Threads of a worker on a CPU where nothing is said: more of them gain little on one image.
THREADS = 4


@dataclass(frozen=True)
class Outcome:
    """What a run did. `planned` counts all images of the output folder, `done` and `broken` those of this run."""

    planned: int
    done: int
    broken: int
    seconds: float
    workers: int


@dataclass(frozen=True)
class Workers:
    """How many workers, of how many threads; None lets the machine decide. `address` is a Ray cluster's, None local."""

    count: int | None = None
    threads: int | None = None
    address: str | None = None


def run_batch(
    job: Job,
    items: Callable[[], Iterator[Item]],
    shard_size: int = 64,
    workers: Workers | None = None,
    retry_broken: bool = False,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Outcome:
    """Segment all of `items` that the output folder does not have yet.

    Raises InputError, OutputError, VocabularyError, BundleError, ConfigurationError or EngineError, in one line, for
    what cannot be used; what was committed by then stays.
    """
    workers = workers or Workers()
    say = notify or (lambda line: None)
    check_names(job.opened_bundle(), job.vocabulary)
    with contextlib.ExitStack() as stack:
        next(items())  # an input that cannot be used is told before a folder is made
        stack.enter_context(claimed(job.output))
        cluster = None
        if workers.address is not None:
            cluster = stack.enter_context(_ray(workers, 1))
            job = job.with_engine(_remote_key(job))
        else:
            job = job.with_engine(job.choice_key())
        settle(job.output, job.record())
        _clear_work(job.output)  # of a driver that is no more
        planned = extend_plan(job.output, items(), shard_size)
        if retry_broken:
            _forget_broken(job.output)
        pending = _pending(job.output, planned, say)
        if not pending:
            return Outcome(sum(shard.images for shard in planned.shards), 0, 0, 0.0, 0)
        (job.output / WORK).mkdir(exist_ok=True)
        return _work(job, planned, pending, workers, cluster, progress or (_silent), say)


def _pending(output: Path, planned: Planned, say: Callable[[str], None]) -> list[PlannedShard]:
    there = set(committed(output))
    pending = [shard for shard in planned.shards if shard.number not in there]
    total = sum(shard.images for shard in planned.shards)
    left = sum(shard.images for shard in pending)
    if planned.absent:
        say(
            f"{planned.absent:,} images of an earlier run are not among the inputs now: they are part of the output too"
        )
    if total > left:
        rest = "nothing is left to do" if not left else "going on from there"
        say(f"{total - left:,} of {total:,} images are done already: {rest}")
    return pending


def _clear_work(output: Path) -> None:
    """Remove unfinished attempts.

    The workers of a driver that was killed live on for a moment. If files were taken out of an attempt's folder, such a
    worker could still commit the rest of it; once the folder above has another name, it can commit nothing.
    """
    with contextlib.suppress(FileNotFoundError):
        os.rename(output / WORK, output / f".{WORK}-{secrets.token_hex(4)}")
    for old in output.glob(f".{WORK}-*"):
        shutil.rmtree(old, ignore_errors=True)


def _forget_broken(output: Path) -> None:
    """Take shards with broken images out of the output, so that they are made again."""
    for number in list(committed(output)):
        folder = output / shard_folder(number)
        if (folder / ERRORS).exists():
            os.rename(folder, output / f".{WORK}-{secrets.token_hex(4)}")
    _clear_work(output)


def _work(
    job: Job,
    planned: Planned,
    pending: Sequence[PlannedShard],
    workers: Workers,
    cluster: Any,
    progress: Progress,
    say: Callable[[str], None],
) -> Outcome:
    total = sum(shard.images for shard in planned.shards)
    before = total - sum(shard.images for shard in pending)
    with contextlib.ExitStack() as stack:
        if cluster is None:
            cluster = stack.enter_context(_ray(workers, len(pending)))
        size = _sizes(cluster, workers, job, len(pending))
        job = replace(job, threads=size.threads)
        what = f"{size.count} worker{'s' if size.count > 1 else ''}"
        on = "a GPU each" if size.gpus else f"{size.threads} thread{'s' if size.threads > 1 else ''} each"
        say(f"{total - before:,} images in {len(pending):,} shards, {what} with {on} ({job.engine_key})")
        follower = stack.enter_context(_Follower(job.output, total, before, progress))
        start = time.monotonic()
        done = broken = 0
        for row in _rows(job, pending, size):
            if row["fault"]:
                raise EngineError(str(row["fault"]))
            done += int(row["images"])
            broken += int(row["broken"])
            follower.committed(before + done + broken)
        seconds = time.monotonic() - start
    _clear_work(job.output)
    missing = {shard.number for shard in planned.shards} - set(committed(job.output))
    if missing:
        raise EngineError(f"{len(missing)} shards were not written, the first is {min(missing)}: run the command again")
    return Outcome(total, done, broken, seconds, size.count)


@dataclass(frozen=True)
class _Size:
    count: int
    threads: int
    gpus: int


def _sizes(resources: dict[str, float], workers: Workers, job: Job, shards: int) -> _Size:
    """One worker for each GPU, or for each group of cores; never more than there are shards."""
    gpus = int(resources.get("GPU", 0)) if "cuda" in job.engine_key else 0
    cpus = max(1, int(resources.get("CPU", 1)))
    if gpus:
        count = min(workers.count or gpus, gpus)
        threads = workers.threads or max(1, cpus // count)
    else:
        threads = workers.threads or (max(1, cpus // workers.count) if workers.count else min(THREADS, cpus))
        threads = min(threads, cpus)
        count = min(workers.count or cpus // threads, max(1, cpus // threads))
    if workers.count is not None and workers.count > count:
        have = f"{gpus} GPUs" if gpus else f"{cpus} cores with {threads} threads each"
        raise EngineError(f"{workers.count} workers are more than {have} can take: ask for at most {count}")
    return _Size(max(1, min(count, shards)), threads, min(gpus, 1))


@contextlib.contextmanager
def _ray(workers: Workers, shards: int) -> Iterator[dict[str, float]]:
    """A connection to the cluster, or Ray started on this machine on loopback; gives what it has to offer."""
    import logging

    from vocabseg.runtime.threads import thread_count

    # What Ray's core writes on standard error is in its log files too.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if workers.address is None:
        options |= {
            "address": "local",
            "num_cpus": max(thread_count(), (workers.count or 1) * (workers.threads or 1)),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        _check_address(workers.address)
        options["address"] = workers.address
    try:
        with _hushed():  # it writes there that it heeds the variable above
            ray.init(**options)
    except Exception as error:  # Ray raises what its parts do
        where = "on this machine" if workers.address is None else f"at {workers.address!r}"
        reason = " ".join(str(error).split())[:200]
        raise EngineError(f"Ray {where} cannot be used ({reason}): check the address and `ray status`") from None
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise EngineError where nothing answers at "host:port" or "ray://host:port"."""
    import socket

    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EngineError(f"there is no Ray at {address!r} ({reason}): give its host and port, or auto") from None


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Nothing of what this process or its native code writes on standard error is seen."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _rows(job: Job, pending: Sequence[PlannedShard], size: _Size) -> Iterator[dict[str, Any]]:
    """A row of counts for each shard, whichever is ready first."""
    import logging

    import ray
    import ray.data

    from vocabseg.batch.worker import Worker

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [shard._asdict() for shard in pending]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS))
    dataset = dataset.map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=size.count, max_tasks_in_flight_per_actor=2),
        num_cpus=size.threads if not size.gpus else 1,
        num_gpus=size.gpus,
        runtime_env={"env_vars": ENVIRONMENT},
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise EngineError(f"the workers failed ({reason.strip()[:300]}): run again, with fewer --workers") from None


def _remote_key(job: Job) -> str:
    """The engine that a worker in the cluster would choose; on a GPU where it has one."""
    import ray

    def key(job: Job) -> tuple[str, str]:
        from vocabseg.runtime.errors import VocabsegError

        try:
            return job.choice_key(), ""
        except VocabsegError as error:
            return "", str(error)

    gpus = 1 if ray.cluster_resources().get("GPU") and job.device != "cpu" else 0
    try:
        found, fault = ray.get(ray.remote(num_cpus=1, num_gpus=gpus)(key).remote(job))
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise EngineError(
            f"vocabseg cannot run in the cluster ({reason.strip()[:300]}): install the same version on all its machines"
        ) from None
    if fault:
        raise EngineError(fault)
    return found


class _Follower:
    """Tells the progress every half second: what is committed, and how far the attempts under way are."""

    def __init__(self, output: Path, total: int, before: int, progress: Progress):
        self._output = output
        self._total = total
        self._before = self._committed = before
        self._progress = progress
        self._ended = threading.Event()
        self._first: tuple[float, int] | None = None
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> "_Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._tell(self._committed)

    def committed(self, images: int) -> None:
        self._committed = images

    def _follow(self) -> None:
        from vocabseg.batch.worker import read_progress

        most = 0
        while not self._ended.wait(SECONDS_PER_LOOK):
            under_way: dict[int, int] = {}
            for attempt in read_progress(self._output):
                under_way[attempt.shard] = max(under_way.get(attempt.shard, 0), attempt.done)
            most = max(most, min(self._total, self._committed + sum(under_way.values())))
            self._tell(most)

    def _tell(self, done: int) -> None:
        now, rate = time.monotonic(), None
        if self._first is None and done > self._before:
            self._first = (now, done)  # from here on the time to start and to open the model does not count
        if self._first is not None and done > self._first[1]:
            rate = (done - self._first[1]) / (now - self._first[0])
        self._progress(min(done, self._total), self._total, rate)


def _silent(done: int, total: int, rate: float | None) -> None:
    pass
