"""Runs of `vocabseg batch` over the same images, undisturbed and disturbed, followed from outside."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from vocabseg.benchmarks.scale.processes import (
    committed_shards,
    kill,
    outputs,
    own_megabytes,
    started,
    workers_of,
    write_images,
)

SIZE = (160, 208)
SHARD = 20
SECONDS_PER_LOOK = 0.25
# Shares of the shards at which a worker and the driver are killed.
KILL_WORKER, KILL_DRIVER = 0.25, 0.6


@dataclass
class BatchRun:
    """One run: `progress` in (seconds, committed shards), `memory` in (seconds, MB) of each worker by process id."""

    name: str
    workers: int
    seconds: float = 0.0
    code: int = 0
    progress: list[tuple[float, int]] = field(default_factory=list)
    memory: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    kills: list[tuple[float, str]] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        """Images per second from the first committed shard to the last: without the start of Ray and the model."""
        if len(self.progress) < 2:
            return None
        (begin, first), (end, last) = self.progress[0], self.progress[-1]
        return (last - first) * SHARD / (end - begin)

    @property
    def growth(self) -> float | None:
        """MB that the largest worker grew from a third of its life to its end; None where none lived long enough."""
        grown = []
        for samples in self.memory.values():
            if len(samples) >= 12:
                third = len(samples) // 3
                early = [megabytes for _, megabytes in samples[third : 2 * third]]
                late = [megabytes for _, megabytes in samples[2 * third :]]
                grown.append(sum(late) / len(late) - sum(early) / len(early))
        return max(grown, default=None)

    @property
    def peak(self) -> float:
        return max((megabytes for samples in self.memory.values() for _, megabytes in samples), default=0.0)


def follow(name: str, photos: Path, output: Path, workers: int, shards: int, disturb: bool = False) -> BatchRun:
    """Run the command and watch it; with `disturb` a worker is killed, and later the driver."""
    run = BatchRun(name, workers)
    options = ("--shard-size", SHARD, "--workers", workers, "--threads", 1, "--quiet")
    before = committed_shards(output)
    start = time.monotonic()
    with started(photos, "-o", output, *options) as process:
        while process.poll() is None:
            now, there = time.monotonic() - start, committed_shards(output)
            if there > (run.progress[-1][1] if run.progress else before):
                run.progress.append((now, there))
            alive = workers_of(process.pid)
            for pid in alive:
                if (megabytes := own_megabytes(pid)) is not None:
                    run.memory.setdefault(pid, []).append((now, megabytes))
            if disturb and not run.kills and there >= KILL_WORKER * shards and alive:
                kill(alive[0])
                run.kills.append((now, "worker killed"))
            elif disturb and len(run.kills) == 1 and there >= KILL_DRIVER * shards:
                run.kills.append((now, "driver killed"))
                process.kill()
            time.sleep(SECONDS_PER_LOOK)
        _, err = process.communicate()
        run.seconds, run.code = time.monotonic() - start, process.returncode
    if run.code != 0 and not (disturb and len(run.kills) == 2):
        raise SystemExit(f"{name} ended with {run.code}: {err.strip()}")
    if not disturb:
        run.progress.append((run.progress[-1][0], committed_shards(output)))
    return run


def measure(images: int, folder: Path) -> tuple[list[BatchRun], list[str]]:
    """The four runs, and what differs between their outputs (nothing should)."""
    photos = folder / "photos"
    shards = -(-images // SHARD)
    print(f"rendering {images} scenes", flush=True)
    write_images(photos, images, size=SIZE)
    runs = []
    for name, place, workers, disturb in (
        ("1 worker", "one", 1, False),
        ("2 workers", "two", 2, False),
        ("2 workers, killed", "disturbed", 2, True),
        ("2 workers, continued", "disturbed", 2, False),
    ):
        print(f"{name} ...", flush=True)
        runs.append(follow(name, photos, folder / place, workers, shards, disturb))
    expected = outputs(folder / "one")
    wrong = []
    for place in ("two", "disturbed"):
        found = outputs(folder / place)
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        wrong += [f"{place}/{name}" for name in names]
    return runs, wrong


def table(runs: list[BatchRun], shards: int, wrong: list[str]) -> str:
    """The figures as text."""
    lines = [f"{'run':<22} {'seconds':>8} {'images/s':>9} {'shards':>7} {'peak MB':>8} {'growth MB':>10}  events"]
    for run in runs:
        rate = "-" if run.rate is None else f"{run.rate:.1f}"
        growth = "-" if run.growth is None else f"{run.growth:+.1f}"
        events = ", ".join(f"{what} at {second:.0f} s" for second, what in run.kills)
        done = f"{run.progress[-1][1]}/{shards}"
        line = f"{run.name:<22} {run.seconds:8.1f} {rate:>9} {done:>7} {run.peak:8.0f} {growth:>10}  {events}"
        lines.append(line.rstrip())
    single, double = runs[0].rate, runs[1].rate
    if single and double:
        lines.append(f"2 workers are {double / single:.2f} times as fast as 1")
    same = "the same in all runs, byte by byte" if not wrong else f"{len(wrong)} files differ, such as {wrong[0]}"
    lines.append(f"outputs: {same}")
    return "\n".join(lines)


def plot(runs: list[BatchRun], path: Path) -> None:
    """Images done and the memory of each worker over the time, one row of pictures for a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.1 * len(runs)), dpi=110, layout="constrained")
    for run, (left, right) in zip(runs, figure.subplots(len(runs), 2, squeeze=False), strict=True):
        left.plot(*zip(*[(second, count * SHARD) for second, count in run.progress], strict=True), color="#0072b2")
        left.set_title(run.name, fontsize=9, loc="left")
        left.set_ylabel("images", fontsize=8)
        for pid, samples in run.memory.items():
            right.plot(*zip(*samples, strict=True), label=f"worker {pid}", linewidth=1)
        right.set_ylabel("MB of its own", fontsize=8)
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.set_xlim(0, run.seconds)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            for second, what in run.kills:
                axes.axvline(second, color="#d55e00", linestyle="--", linewidth=1)
                axes.text(second, 0.02, f" {what}", fontsize=7, color="#d55e00", transform=axes.get_xaxis_transform())
    figure.supxlabel("seconds since the start", fontsize=8)
    figure.savefig(path)
