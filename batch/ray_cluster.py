"""Ray, on this machine or a cluster: connecting, how many workers fit, and handing the shards out to them."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vocabseg.batch.job import Job
from vocabseg.batch.local_ray import private, tied
from vocabseg.batch.shard_plan import PlannedShard
from vocabseg.batch.worker import ShardWorker
from vocabseg.runtime.errors import EngineError, VocabsegError

# Bytes of Ray's shared memory: only numbers go through it. (Ray's minimum is 75 MB.)
OBJECT_STORE_BYTES = 100_000_000
# Blocks of shards that Ray Data is given; each is one task of an actor, repeated if the actor dies.
BLOCKS = 2000
# The C library's default, 8 arenas per core, lets a worker of many threads grow by half over its first 1,000 images.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
# Seconds after which a cluster that does not answer counts as missing. (Ray itself would try forever.)
TIMEOUT = 10.0
# Threads of a worker on a CPU by default: more of them gain little on one image.
THREADS = 4


@dataclass(frozen=True)
class Workers:
    """How many workers, with how many threads and GPUs each; None leaves it to `sized`.

    `address` is a Ray cluster's; None is this machine.
    """

    count: int | None = None
    threads: int | None = None
    address: str | None = None
    gpus: int = 0


def sized(resources: dict[str, float], workers: Workers, job: Job, shards: int) -> Workers:
    """One worker per GPU, or per group of cores; never more than there are shards. Raises EngineError."""
    gpus = int(resources.get("GPU", 0)) if "cuda" in job.engine_key else 0
    cpus = max(1, int(resources.get("CPU", 1)))
    if gpus:
        most = gpus
        threads = workers.threads or max(1, cpus // min(workers.count or gpus, gpus))
        have = f"{gpus} GPUs"
    else:
        threads = workers.threads or (max(1, cpus // workers.count) if workers.count else THREADS)
        threads = min(threads, cpus)
        most = max(1, cpus // threads)
        have = f"{cpus} cores with {threads} threads each"
    if workers.count is not None and workers.count > most:
        raise EngineError(f"{workers.count} workers are more than {have} can take: ask for at most {most}")
    return replace(workers, count=max(1, min(workers.count or most, shards)), threads=threads, gpus=min(gpus, 1))


@contextlib.contextmanager
def connected(workers: Workers) -> Iterator[dict[str, float]]:
    """A connection to the cluster, or to a Ray of this run alone on this machine; yields its resources."""
    from vocabseg.runtime.threads import thread_count

    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if workers.address is None:
            options |= stack.enter_context(private())
            options["num_cpus"] = max(thread_count(), (workers.count or 1) * (workers.threads or 1))
            options["object_store_memory"] = OBJECT_STORE_BYTES
        else:
            _check_address(workers.address)
            options["address"] = workers.address
        # What Ray's core writes on standard error is in its log files, too.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        try:
            with _hushed():  # it announces there that it obeys the variables above
                ray.init(**options)
        except Exception as error:  # Ray raises whatever its parts do
            where = "on this machine" if workers.address is None else f"at {workers.address!r}"
            reason = " ".join(str(error).split())[:200]
            raise EngineError(f"Ray {where} cannot be used ({reason}): check the address and `ray status`") from None
        ending = stack.enter_context(tied()) if workers.address is None else None
        stack.callback(ray.shutdown)
        if ending is not None:
            stack.callback(ending.set)
        yield ray.cluster_resources()


def _check_address(address: str) -> None:
    """Raise EngineError where nothing answers at "host:port" or "ray://host:port"."""
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
    """Discards what this process, or its native code, writes on standard error."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def remote_choice(job: Job) -> str:
    """The engine that a worker in the cluster would choose, on a GPU where it has one; raises EngineError."""
    import ray

    def choice(job: Job) -> tuple[str, str]:
        try:
            return job.choice_key(job.open_bundle()), ""
        except VocabsegError as error:
            return "", str(error)

    gpus = 1 if ray.cluster_resources().get("GPU") and job.device != "cpu" else 0
    try:
        found, fault = ray.get(ray.remote(num_cpus=1, num_gpus=gpus)(choice).remote(job))
    except ray.exceptions.RayError as error:
        reason = _last_line(error)
        raise EngineError(
            f"vocabseg cannot run in the cluster ({reason}): install the same version on all its machines"
        ) from None
    if fault:
        raise EngineError(fault)
    return found


def shard_rows(job: Job, pending: Sequence[PlannedShard], workers: Workers) -> Iterator[dict[str, Any]]:
    """Have the shards written; yields a row of counts for each as it is finished."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [shard._asdict() for shard in pending]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS))
    dataset = dataset.map(
        ShardWorker,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=workers.count, max_tasks_in_flight_per_actor=2),
        num_cpus=1 if workers.gpus else workers.threads,
        num_gpus=workers.gpus,
        runtime_env={"env_vars": ENVIRONMENT},
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        raise EngineError(f"the workers failed ({_last_line(error)}): run again, with fewer --workers") from None


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:300]
