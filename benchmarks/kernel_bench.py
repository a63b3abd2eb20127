"""Every host kernel against plain PyTorch that does the same work as the reference, and agrees with it.

Both take turns in one process with the same number of threads, so that other work on the machine affects both alike.

    python -m vocabseg.benchmarks.kernel_bench [--recorded FOLDER] [--json FILE]

The CUDA kernels' instructions, counted in their machine code, against the limits of an H200:

    python -m vocabseg.benchmarks.kernel_bench --estimate [--json FILE]

What it costs the host to submit one image to the GPU, on any driver that PyCUDA takes for one:

    python -m vocabseg.benchmarks.kernel_bench --submission [--json FILE]
"""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vocabseg.benchmarks.kernels.host import KernelTiming, contenders, many_classes, measure
from vocabseg.benchmarks.kernels.inputs import recorded_inputs, synthetic_inputs
from vocabseg.runtime.errors import VocabsegError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.threads import thread_count


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    from vocabseg.runtime.doctor import processor

    return {
        "processor": processor(),
        "platform": platform.platform(),
        "threads": threads,
        "instruction_set": load_kernels().variant(),
        "torch": torch.__version__,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def report(timings: list[KernelTiming], facts: dict[str, Any], origin: str) -> Table:
    """One row for each contender."""
    what = f"{origin} input, {facts['threads']} threads, instruction set {facts['instruction_set']}"
    table = Table("kernel", "vocabseg", "PyTorch", "PyTorch / vocabseg", "error", title=f"{what}, ms: median (range)")
    for timing in timings:
        table.add_row(
            timing.name, _spread(timing.kernel), _spread(timing.torch), f"{timing.ratio:.1f}", f"{timing.error:.1e}"
        )
    return table


def _spread(times: list[float]) -> str:
    low, middle, high = (1000 * value for value in (min(times), statistics.median(times), max(times)))
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def print_estimate(classes: list[int], json_file: Path | None) -> None:
    """The table of benchmarks/kernels/estimate.py for numbers of classes; raises EngineError."""
    from vocabseg.benchmarks.kernels.estimate import estimates, report
    from vocabseg.runtime.kernels.device.fatbin import kernels_fatbin

    with Progress(transient=True) as progress:
        progress.add_task("counting", total=None)
        rows = list(estimates(kernels_fatbin(), classes))
    print_rows(report(rows), rows, json_file)


def print_submission(json_file: Path | None) -> None:
    """The table of benchmarks/kernels/submission.py on the first GPU; raises EngineError."""
    from vocabseg.benchmarks.kernels.submission import report, submissions
    from vocabseg.runtime.cuda.device import open_device

    device = open_device(0)
    rows = submissions(device)
    print_rows(report(rows, device.name), rows, json_file)


def print_rows(table: Table, rows: Sequence[Any], json_file: Path | None) -> None:
    """A table, and its rows as JSON."""
    console = Console(width=120)
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        console.print(f"written: {json_file}")


def main(
    recorded: Annotated[
        Path | None, typer.Option(help="Folder of the values recorded from the published code; default: synthetic.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    threads: Annotated[int, typer.Option(help="Of both; 0: as many as this process may use.")] = 2,
    repeats: Annotated[int, typer.Option(min=3, help="Turns of each.")] = 9,
    seconds: Annotated[float, typer.Option(help="After so long, no more than three turns.")] = 20,
    classes: Annotated[list[int] | None, typer.Option(help="Numbers of classes; default: 20, 171, 847.")] = None,
    only: Annotated[str, typer.Option(help="Only kernels whose name begins so.")] = "",
    many: Annotated[int, typer.Option(help="Classes of the run that measures memory.")] = 10_000,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Count the instructions of the CUDA kernels instead; needs no GPU.")
    ] = False,
    submission: Annotated[
        bool, typer.Option("--submission", help="Measure what it costs the host to submit an image to the GPU instead.")
    ] = False,
) -> None:
    """Measure the host kernels against plain PyTorch."""
    if estimate:
        print_estimate(classes or [171], json_file)
        return
    if submission:
        print_submission(json_file)
        return
    import torch

    threads = thread_count(threads or None)
    torch.set_num_threads(threads)
    inputs = synthetic_inputs() if recorded is None else recorded_inputs(recorded)
    timings = []
    with torch.inference_mode(), Progress(transient=True) as progress:
        step = progress.add_task("measuring", total=None)
        for contender in contenders(inputs, threads, tuple(classes or (20, 171, 847))):
            if not contender.name.startswith(only):
                continue
            progress.update(step, description=contender.name)
            timings.append(measure(contender, repeats, seconds))
    facts = machine(threads)
    console = Console(width=120)
    console.print(report(timings, facts, inputs.origin))
    with get_context("spawn").Pool(1) as pool:
        taken, extra = pool.apply(many_classes, (threads, many))
    console.print(
        f"compose, {many} classes: {1000 * taken:.0f} ms, "
        + ("memory unknown" if extra is None else f"{extra / 1e6:.0f} MB of extra memory")
    )
    if json_file is not None:
        result = {
            "input": inputs.origin,
            "machine": facts,
            "kernels": [asdict(timing) for timing in timings],
            "many_classes": {"classes": many, "seconds": taken, "extra_bytes": extra},
        }
        json_file.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written: {json_file}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except VocabsegError as error:
        raise SystemExit(f"kernel_bench: {error}") from None
