"""Every host kernel against plain PyTorch that does the same work as the reference, and agrees with it.

Both take turns in one process with the same number of threads, so that what else the machine does hits both.

    python -m vocabseg.benchmarks.kernel_bench [--recorded FOLDER] [--json FILE]
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vocabseg.benchmarks.kernels.inputs import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGE_MEAN,
    IMAGE_STD,
    ORIGINAL,
    PADDED,
    RESIZED,
    THRESHOLD,
    Inputs,
    class_probabilities,
    cropping,
    recorded_inputs,
    synthetic_inputs,
)
from vocabseg.runtime.errors import VocabsegError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.threads import thread_count


class WrongResultError(VocabsegError):
    """A kernel's result is not PyTorch's."""


@dataclass(frozen=True)
class Contender:
    """One piece of work: the kernel, PyTorch, and how far their results may differ."""

    name: str
    kernel: Callable[[], Any]
    torch: Callable[[], Any]
    compare: Callable[[Any, Any], float]
    tolerance: float


@dataclass(frozen=True)
class Timing:
    """Seconds of every repeat, the error of the kernel's result, and the ratio of the medians."""

    name: str
    kernel: list[float]
    torch: list[float]
    error: float
    tolerance: float
    ratio: float


def contenders(inputs: Inputs, threads: int, class_counts: tuple[int, ...]) -> Iterator[Contender]:
    """All kernels; `torch` must use `threads` threads already."""
    import torch

    from vocabseg.export import reference
    from vocabseg.runtime.bundle.sections import InputSection, RegionSection

    kernels = load_kernels()
    section = InputSection(min_size=640, max_size=2560, divisor=32, mean=IMAGE_MEAN, std=IMAGE_STD)
    masks = torch.from_numpy(inputs.mask_logits)
    clip: Any = SimpleNamespace(mean=CLIP_MEAN, std=CLIP_STD)

    def torch_resize() -> Any:
        resized = reference.resize_shortest_edge(inputs.image, section)
        return reference.normalise_and_pad([resized], section)

    yield Contender(
        "resize_normalize",
        lambda: kernels.resize_normalize(inputs.image, RESIZED, PADDED, IMAGE_MEAN, IMAGE_STD, threads=threads)[0],
        torch_resize,
        largest_difference,
        1e-6,
    )

    def torch_boxes() -> Any:
        binary = reference.upsample_masks(masks, PADDED, RESIZED) > THRESHOLD
        valid = binary.flatten(1).any(dim=1)
        return valid, reference.tight_boxes(binary[valid]), binary.sum(dim=(1, 2))

    yield Contender(
        "region_boxes",
        lambda: kernels.region_boxes(inputs.masks, THRESHOLD, threads=threads),
        torch_boxes,
        box_difference,
        1,  # a pixel whose probability rounds to the threshold may count or not
    )

    def torch_crops(matting: bool) -> Any:
        region = RegionSection(
            mask_threshold=THRESHOLD, mask_fill="mean", expand_ratio=1.0, matting=matting, crop_size=224
        )
        picture = torch.from_numpy(inputs.resized).permute(2, 0, 1).float()
        weights = reference.upsample_masks(masks, PADDED, RESIZED)[torch.from_numpy(inputs.indices).long()]
        if not matting:
            weights = (weights > THRESHOLD).float()
        cuts = reference.cut_regions(picture, weights, torch.from_numpy(inputs.boxes).float(), region, clip)
        resize = partial(torch.nn.functional.interpolate, size=(224, 224), mode="bicubic", align_corners=False)
        return torch.cat([resize(cut[None]) for cut in cuts])

    def kernel_crops(matting: bool) -> Any:
        picture, masks = inputs.resized, inputs.masks
        return kernels.crop_regions(picture, masks, inputs.boxes, inputs.indices, cropping(matting), threads=threads)

    for matting in (False, True):
        yield Contender(
            f"crop_regions, {len(inputs.boxes)} regions" + (", matting" if matting else ""),
            partial(kernel_crops, matting),
            partial(torch_crops, matting),
            # Single pixels whose probability rounds to the threshold may fall on either side of it.
            largest_difference if matting else difference_of_most,
            1e-4,
        )

    def torch_compose(probabilities: Any) -> Any:
        scores = torch.einsum("qc,qhw->chw", probabilities, reference.upsample_masks(masks, PADDED, RESIZED))
        scores = torch.nn.functional.interpolate(scores[None], size=ORIGINAL, mode="bilinear", align_corners=False)[0]
        return scores, scores.argmax(dim=0)

    def kernel_compose(probabilities: Any) -> Any:
        return kernels.compose(inputs.masks, probabilities, threads=threads)

    for classes in class_counts:
        for decided in (True, False):
            probabilities = class_probabilities(classes, decided)
            yield Contender(
                f"compose, {classes} classes" + ("" if decided else ", undecided"),
                partial(kernel_compose, probabilities),
                partial(torch_compose, torch.from_numpy(probabilities)),
                score_difference,
                1e-4,
            )


def largest_difference(found: Any, wanted: Any) -> float:
    """Of two arrays."""
    return float(np.abs(found - wanted.numpy()).max())


def difference_of_most(found: Any, wanted: Any) -> float:
    """What 99.99 % of the values keep within."""
    return float(np.quantile(np.abs(found - wanted.numpy()), 0.9999))


def box_difference(found: Any, wanted: Any) -> float:
    """Of boxes and areas of the masks that are valid in PyTorch's eyes, in pixels."""
    (boxes, areas), (valid, wanted_boxes, wanted_areas) = found, wanted
    boxes = np.abs(boxes[valid.numpy()] - wanted_boxes.numpy())
    return float(max(boxes.max(initial=0), np.abs(areas - wanted_areas.numpy()).max(initial=0)))


def score_difference(found: Any, wanted: Any) -> float:
    """How far PyTorch's score of the label found, and the score found, are from PyTorch's best."""
    import torch

    (labels, scores), (wanted_scores, wanted_labels) = found, wanted
    best = wanted_scores.gather(0, wanted_labels[None])[0]
    own = wanted_scores.gather(0, torch.from_numpy(labels).long()[None])[0]
    return float(max((best - own).max(), (best - torch.from_numpy(scores)).abs().max()))


def measure(contender: Contender, repeats: int, seconds: float) -> Timing:
    """`repeats` turns each, fewer (but 3) once `seconds` are over; raises WrongResultError."""
    error = contender.compare(contender.kernel(), contender.torch())
    if not error <= contender.tolerance:
        raise WrongResultError(f"{contender.name} is {error:.3g} off PyTorch, {contender.tolerance:g} is allowed")
    times: dict[str, list[float]] = {"kernel": [], "torch": []}
    start = time.perf_counter()
    while len(times["torch"]) < repeats and (len(times["torch"]) < 3 or time.perf_counter() - start < seconds):
        for side, function in (("kernel", contender.kernel), ("torch", contender.torch)):
            began = time.perf_counter()
            function()
            times[side].append(time.perf_counter() - began)
    ratio = statistics.median(times["torch"]) / statistics.median(times["kernel"])
    return Timing(contender.name, times["kernel"], times["torch"], error, contender.tolerance, ratio)


def many_classes(threads: int, classes: int) -> tuple[float, int | None]:
    """Seconds, and bytes of memory beyond the arguments, that compose takes for so many classes.

    To be run in a process of its own. PyTorch would need 4 bytes for each class and pixel of both sizes: 35 GB for
    10,000 classes.
    """
    inputs, probabilities = synthetic_inputs(), class_probabilities(classes, decided=True)
    before, start = _memory("VmRSS"), time.perf_counter()
    load_kernels().compose(inputs.masks, probabilities, threads=threads)
    seconds, after = time.perf_counter() - start, _memory("VmHWM")
    return seconds, None if before is None or after is None else max(after - before, 0)


def _memory(entry: str) -> int | None:
    """Bytes of this process by /proc's name for them; None where there is no such thing."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(fields[entry].split()[0]) * 1024


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


def report(timings: list[Timing], facts: dict[str, Any], origin: str) -> Table:
    """One row for each contender."""
    title = (
        f"{origin} input, {facts['threads']} threads, instruction set {facts['instruction_set']}, ms: median (range)"
    )
    table = Table("kernel", "vocabseg", "PyTorch", "PyTorch / vocabseg", "error", title=title)
    for timing in timings:
        table.add_row(
            timing.name, _spread(timing.kernel), _spread(timing.torch), f"{timing.ratio:.1f}", f"{timing.error:.1e}"
        )
    return table


def _spread(times: list[float]) -> str:
    low, middle, high = (1000 * value for value in (min(times), statistics.median(times), max(times)))
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


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
) -> None:
    """Measure the host kernels against plain PyTorch."""
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
    typer.run(main)
