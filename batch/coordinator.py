"""The coordinator (Ray's driver): makes the plan, hands the shards to workers on Ray, and follows them.

What each promise rests on:
  no image is lost        the plan (`shard_plan.py`), written before the work: a run ends when all its shards exist
  no image is doubled     ids are checked when they are planned, and a shard takes its place by a rename that only the
                          first of several writers can do (`shard.py`)
  outputs are the same    a shard's images are in the plan, and nothing in it depends on who wrote it or when
  workers may die         Ray restarts an actor and gives it its shards again; what was committed is skipped
  the driver may die      the next one takes what is planned and not committed; local workers end with their driver
  memory is bounded       only the shards' numbers and counts go through Ray, and Ray Data hands an actor two blocks of
                          them at a time (its back-pressure); the actor reads its images itself, a few ahead
So Ray is trusted with handing out work at least once, and the file system with the rest.
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vocabseg.batch.follower import Follower
from vocabseg.batch.inputs.items import Item, LeftOut, ignored
from vocabseg.batch.inputs.left_out import recorded
from vocabseg.batch.job import WORK, Job, check_names, claimed, settle
from vocabseg.batch.ray_cluster import Workers, connected, remote_choice, shard_rows, sized
from vocabseg.batch.shard import ERRORS, committed, shard_folder
from vocabseg.batch.shard_plan import Planned, PlannedShard, extend_plan
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.progress import Progress, counted

Notify = Callable[[str], None]


@dataclass(frozen=True)
class BatchOutcome:
    """What a run did. `done` and `broken` count its images, `seconds` its time; 0 where nothing was left to do."""

    done: int = 0
    broken: int = 0
    seconds: float = 0.0


def run_batch(
    bundle: Bundle,
    job: Job,
    items: Callable[[LeftOut], Iterator[Item]],
    shard_size: int,
    workers: Workers,
    retry_broken: bool,
    progress: Progress,
    notify: Notify,
) -> BatchOutcome:
    """Segment all of `items` that the output folder does not have yet; `bundle` is the job's, opened and verified.

    `items` tells the function that it is given what it leaves out of the inputs, and why; LEFT_OUT records it.

    Raises InputError, OutputError, VocabularyError, BundleError, ConfigurationError or EngineError, in one line, for
    what cannot be used; what was committed by then stays.
    """
    check_names(bundle, job.vocabulary)
    next(items(ignored))  # raises InputError before a folder is made
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(job.output))
        resources = stack.enter_context(connected(workers)) if workers.address is not None else None
        job = replace(job, engine_key=job.choice_key(bundle) if resources is None else remote_choice(job))
        settle(job.output, job.record(bundle))
        _clear_work(job.output)  # left by a driver that died
        with recorded(job.output) as left_out:
            planned = extend_plan(job.output, items(left_out), shard_size)
        if retry_broken:
            _forget_broken(job.output)
        pending = _pending(job.output, planned, notify)
        if not pending:
            return BatchOutcome()
        (job.output / WORK).mkdir(exist_ok=True)
        if resources is None:
            resources = stack.enter_context(connected(workers))
        return _work(job, planned, pending, sized(resources, workers, job, len(pending)), progress, notify)


def _pending(output: Path, planned: Planned, notify: Notify) -> list[PlannedShard]:
    there = set(committed(output))
    pending = [shard for shard in planned.shards if shard.number not in there]
    total, left = (sum(shard.images for shard in shards) for shards in (planned.shards, pending))
    if planned.absent:
        absent = counted(planned.absent, "image")
        notify(f"{absent} of an earlier run, no longer among the inputs: the output keeps what it has of them")
    if total > left:
        rest = "nothing is left to do" if not left else "going on from there"
        are = "is" if total == 1 else "are"
        notify(f"{total - left:,} of {counted(total, 'image')} {are} done already: {rest}")
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
    """Remove shards with broken images from the output, so that they are made again."""
    for number in list(committed(output)):
        folder = output / shard_folder(number)
        if (folder / ERRORS).exists():
            os.rename(folder, output / f".{WORK}-{secrets.token_hex(4)}")
    _clear_work(output)


def _work(
    job: Job, planned: Planned, pending: Sequence[PlannedShard], workers: Workers, progress: Progress, notify: Notify
) -> BatchOutcome:
    total = sum(shard.images for shard in planned.shards)
    before = total - sum(shard.images for shard in pending)
    count, threads = workers.count or 1, workers.threads or 1
    each = "a GPU" if workers.gpus else counted(threads, "thread")
    what = f"{counted(count, 'worker')} with {each} each"
    notify(f"{counted(total - before, 'image')} in {counted(len(pending), 'shard')}, {what} ({job.engine_key})")
    done = broken = 0
    start = time.monotonic()
    with Follower(job.output, total, before, progress) as follower:
        for row in shard_rows(replace(job, threads=threads), pending, workers):
            if row["fault"]:
                raise EngineError(row["fault"])
            done += row["images"]
            broken += row["broken"]
            follower.committed = before + done + broken
    _clear_work(job.output)
    missing = {shard.number for shard in planned.shards} - set(committed(job.output))
    if missing:
        raise EngineError(f"{len(missing)} shards were not written, the first is {min(missing)}: run the command again")
    return BatchOutcome(done, broken, time.monotonic() - start)
