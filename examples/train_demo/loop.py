"""One training loop for both stages: schedule, checkpoints, resume, progress."""

import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Generator = np.random.Generator
WARM_UP = 0.03  # of the steps
SAVE_EVERY = 120.0  # seconds


@dataclass
class Run:
    """How long and where to train; `minutes` shortens the schedule, so that it ends in time."""

    output: Path
    steps: int
    seed: int
    minutes: float | None = None
    resume: bool = False
    device: str = "cpu"
    quiet: bool = False


def train(
    name: str,
    run: Run,
    modules: Mapping[str, nn.Module],
    learning_rate: float,
    make_batch: Callable[[Generator, float], Any],
    compute_loss: Callable[[Any, float], tuple[Tensor, dict[str, float]]],
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 250,
) -> list[float]:
    """Train `modules` and leave their weights at `run.output / name.pt`; returns the losses of this call's steps.

    make_batch(generator, progress) runs a step ahead in a thread; it and compute_loss(batch, progress) see progress in
    0..1. A step's random numbers come from seed and step alone, so that a resumed run goes on as if never stopped.
    """
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02, betas=(0.9, 0.98))
    path = run.output / f"{name}.pt"
    state: dict[str, Any] = {"step": 0, "seconds": 0.0}
    if run.resume and path.exists():
        state = torch.load(path, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
        optimizer.load_state_dict(state["optimizer"])
    first, start, saved = state["step"], time.monotonic() - state["seconds"], time.monotonic()
    report = _Reporter(name, run)
    losses: list[float] = []

    def progress_at(step: int) -> float:
        timed = (time.monotonic() - start) / (60 * run.minutes) if run.minutes else 0.0
        return min(1.0, max(step / run.steps, timed))

    def prepare(step: int) -> tuple[float, Any]:
        progress = progress_at(step)
        return progress, make_batch(np.random.default_rng([run.seed, step]), progress)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(prepare, first)
        step = first
        while step < run.steps:
            progress, batch = coming.result()
            if progress >= 1:
                break
            coming = pool.submit(prepare, step + 1)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * schedule(progress)
            torch.manual_seed(run.seed * 1_000_003 + step)
            loss, figures = compute_loss(batch, progress)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
            report.step(step, progress, losses[-1], figures)
            if time.monotonic() - saved > SAVE_EVERY:
                _save(path, step, time.monotonic() - start, modules, optimizer)
                saved = time.monotonic()
            if evaluate is not None and step % evaluate_every == 0:
                report.note(step, evaluate())
        coming.cancel()
    _save(path, step, time.monotonic() - start, modules, optimizer)
    if evaluate is not None:
        report.note(step, evaluate())
    report.close()
    return losses


def schedule(progress: float) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    if progress < WARM_UP:
        return 0.05 + 0.95 * progress / WARM_UP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _save(
    path: Path, step: int, seconds: float, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    temporary = path.with_suffix(".part")
    torch.save(
        {
            "step": step,
            "seconds": seconds,
            "modules": {key: module.state_dict() for key, module in modules.items()},
            "optimizer": optimizer.state_dict(),
        },
        temporary,
    )
    os.replace(temporary, path)


class _Reporter:
    """A progress bar on a terminal, and a line every few seconds in `name.log`."""

    def __init__(self, name: str, run: Run):
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
        )
        self.bar = Progress(*columns, disable=run.quiet)
        self.task = self.bar.add_task(name, total=1.0, status="")
        self.bar.start()
        self.log = (run.output / f"{name}.log").open("a", encoding="utf-8")
        self.mean: dict[str, float] = {}
        self.last = 0.0

    def step(self, step: int, progress: float, loss: float, figures: Mapping[str, float]) -> None:
        for key, value in {"loss": loss, **figures}.items():
            self.mean[key] = 0.95 * self.mean.get(key, value) + 0.05 * value
        shown = " ".join(f"{key} {value:.3f}" for key, value in self.mean.items())
        self.bar.update(self.task, completed=progress, status=f"step {step} loss {self.mean['loss']:.3f}")
        if time.monotonic() - self.last > 10:
            self.last = time.monotonic()
            print(f"{time.strftime('%H:%M:%S')} {progress:.3f} step {step} {shown}", file=self.log, flush=True)

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        shown = " ".join(f"{key} {value:.2f}" for key, value in figures.items())
        print(f"{time.strftime('%H:%M:%S')} step {step} === {shown}", file=self.log, flush=True)
        self.bar.console.print(f"step {step}: {shown}")

    def close(self) -> None:
        self.bar.update(self.task, completed=1.0)
        self.bar.stop()
        self.log.close()
