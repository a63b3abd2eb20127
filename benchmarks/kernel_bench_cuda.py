"""The CUDA kernels on a GPU: time, share of the measured memory bandwidth, and PyTorch's loop over the regions.

Inputs rotate over more memory than the second-level cache holds, a CUDA graph replays the launches where one can be
captured, and events on the stream take the time. The peak is what a plain copy on the same GPU reaches.

    python -m vocabseg.benchmarks.kernel_bench_cuda [--json FILE]
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from vocabseg.benchmarks.kernels.inputs import (
    CLIP_MEAN,
    CLIP_STD,
    CROP_SIZE,
    IMAGE_MEAN,
    IMAGE_STD,
    ORIGINAL,
    PADDED,
    RESIZED,
    THRESHOLD,
    Inputs,
    class_probabilities,
    cropping,
    synthetic_inputs,
)
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device, open_device
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.kernels.device.arguments import CropSource
from vocabseg.runtime.kernels.device.face import CudaKernels

# More than the second-level cache of any GPU so far (126 MB on Blackwell).
ROTATION_BYTES = 256_000_000


@dataclass(frozen=True)
class Work:
    """A call of a kernel on one of several copies of its arrays.

    launch(k) works on copy k. bytes: read and written by one call, each once. operations: multiply-adds times two on
    tensor cores, 0 where there are none.
    """

    name: str
    launch: Callable[[int], None]
    bytes: int
    operations: int = 0


@dataclass(frozen=True)
class Speed:
    """Microseconds of a call (median, and all of them), and what that is in GB/s, TFLOP/s and of the peak."""

    name: str
    median: float
    times: list[float]
    bandwidth: float
    share: float
    tera_operations: float


def rotations(size: int, limit: int = ROTATION_BYTES) -> int:
    """How many copies of arrays of `size` bytes are needed before one that was touched has left the cache; 2 to 64."""
    return max(2, min(64, math.ceil(limit / max(size, 1))))


def speed(work: Work, times: Sequence[float], peak: float) -> Speed:
    """times: microseconds of a call; peak: GB/s."""
    median = statistics.median(times)
    bandwidth = work.bytes / median / 1e3
    return Speed(work.name, median, list(times), bandwidth, bandwidth / peak, work.operations / median / 1e6)


def time_calls(work: Work, copies: int, stream: Stream, repeats: int = 30) -> list[float]:
    """Microseconds of a call, from `repeats` rounds over all copies."""

    def round_of_calls() -> None:
        for k in range(copies):
            work.launch(k)

    round_of_calls()  # tables and workspaces are there from now on
    stream.synchronize()
    graph = stream.capture(round_of_calls)
    replay = round_of_calls if graph is None else lambda: graph.launch(stream)
    for _ in range(3):
        replay()
    times = []
    for _ in range(repeats):
        begin = stream.record()
        replay()
        end = stream.record()
        end.synchronize()
        times.append(1000 * end.elapsed_since(begin) / copies)
    return times


def copy_bandwidth(device: Device, stream: Stream, size: int = 2**28) -> float:
    """GB/s, read and written, of a copy within the device's memory."""
    source, target = device.empty((size,), np.uint8), device.empty((size,), np.uint8)
    stream.fill(source, 1)
    work = Work("copy", lambda _: stream.copy(target, source), 2 * size)
    return work.bytes / statistics.median(time_calls(work, 2, stream, 10)) / 1e3


class Arrays:
    """The arrays of one image on the device; every copy has its own."""

    def __init__(self, device: Device, stream: Stream, inputs: Inputs, probabilities: np.ndarray, half: bool):
        def up(array: np.ndarray) -> DeviceArray:
            target = device.empty(array.shape, array.dtype)
            stream.upload(target, np.ascontiguousarray(array))
            stream.synchronize()
            return target

        dtype = np.float16 if half else np.float32
        n, (h, w) = len(inputs.mask_logits), RESIZED
        self.image, self.resized = up(inputs.image), up(inputs.resized)
        self.masks = replace(inputs.masks, logits=up(inputs.mask_logits.astype(dtype)))
        self.probabilities = up(probabilities)
        self.network_input = device.empty((1, 3, *PADDED), dtype)
        self.boxes, self.areas = device.empty((n, 4), np.int32), device.empty((n,), np.int32)
        self.bits = device.empty((n, h, -(-w // 32)), np.uint32)
        self.order, self.crop_boxes = device.empty((n,), np.int32), device.empty((n, 4), np.int32)
        self.count = device.empty((1,), np.int32)
        self.crops = device.empty((n, 3, CROP_SIZE, CROP_SIZE), dtype)
        self.labels, self.scores = device.empty(ORIGINAL, np.int32), device.empty(ORIGINAL, np.float32)


def works(kernels: CudaKernels, stream: Stream, arrays: Sequence[Arrays], regions: int) -> list[Work]:
    """The calls that are measured; region_boxes and select_regions must have run on `arrays`."""
    first = arrays[0]
    masks, classes = first.probabilities.shape

    def resize(k: int) -> None:
        a = arrays[k]
        kernels.resize_normalize(a.image, IMAGE_MEAN, IMAGE_STD, a.network_input, a.resized, stream)

    def boxes(k: int) -> None:
        a = arrays[k]
        kernels.region_boxes(a.masks, THRESHOLD, a.boxes, a.areas, a.bits, stream)

    def select(k: int) -> None:
        a = arrays[k]
        kernels.select_regions(a.boxes, a.areas, 1.0, RESIZED, a.order, a.crop_boxes, a.count, stream)

    def crops(k: int) -> None:
        a = arrays[k]
        source = CropSource(a.resized, a.masks, a.bits, a.crop_boxes, a.order, a.count, 0)
        kernels.crop_regions([source], cropping(), a.crops, stream)

    def compose(k: int) -> None:
        a = arrays[k]
        kernels.compose(a.masks, a.probabilities, None, None, a.labels, a.scores, stream)

    def size(*names: str) -> int:
        arrays = {**vars(first), "logits": first.masks.logits}
        return sum(arrays[name].nbytes for name in names)

    written_crops = first.crops.nbytes // masks * regions
    return [
        Work("resize_normalize", resize, size("image", "resized", "network_input")),
        Work("region_boxes", boxes, size("logits", "boxes", "areas", "bits")),
        Work("select_regions", select, size("boxes", "areas", "order", "crop_boxes")),
        Work(f"crop_regions, {regions} regions", crops, size("resized", "bits") + written_crops),
        Work(
            f"compose, {classes} classes",
            compose,
            size("logits", "probabilities", "labels", "scores"),
            2 * masks * classes * ORIGINAL[0] * ORIGINAL[1],
        ),
    ]


def torch_crops(inputs: Inputs, half: bool) -> Callable[[], None] | None:
    """The loop over regions that crop_regions replaces, with the same work in PyTorch on the GPU; None without one."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    logits = torch.from_numpy(inputs.mask_logits).cuda()
    picture = torch.from_numpy(inputs.resized).cuda().permute(2, 0, 1).float()
    mean, std = (torch.tensor(values, device="cuda").view(3, 1, 1) * 255 for values in (CLIP_MEAN, CLIP_STD))
    resize = torch.nn.functional.interpolate

    def run() -> None:
        full = resize(logits[None], PADDED, mode="bilinear", align_corners=False)[0, :, : RESIZED[0], : RESIZED[1]]
        inside = full.sigmoid() > THRESHOLD
        crops = []
        for (x1, y1, x2, y2), index in zip(inputs.boxes.tolist(), inputs.indices.tolist(), strict=True):
            mask = inside[index, y1:y2, x1:x2]
            cut = (torch.where(mask, picture[:, y1:y2, x1:x2], mean) - mean) / std
            crops.append(resize(cut[None], (CROP_SIZE, CROP_SIZE), mode="bicubic", align_corners=False))
        torch.cat(crops).to(torch.float16 if half else torch.float32)
        torch.cuda.synchronize()

    return run


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    classes: Annotated[int, typer.Option(help="Of compose.")] = 171,
    half: Annotated[bool, typer.Option(help="Mask logits, network input and crops in float16.")] = True,
    ordinal: Annotated[int, typer.Option(help="Which GPU.")] = 0,
) -> None:
    """Measure the CUDA kernels."""
    import time

    device = open_device(ordinal)
    kernels, stream, inputs = CudaKernels(device), device.stream(), synthetic_inputs()
    peak = copy_bandwidth(device, stream)
    results = []
    for decided in (True, False):
        probabilities = class_probabilities(classes, decided)
        size = inputs.mask_logits.nbytes + 100 * 3 * CROP_SIZE**2 * (2 if half else 4)
        arrays = [Arrays(device, stream, inputs, probabilities, half) for _ in range(rotations(size))]
        prepared = works(kernels, stream, arrays, len(inputs.indices))
        for work in prepared if decided else prepared[-1:]:
            found = speed(work, time_calls(work, len(arrays), stream), peak)
            results.append(found if decided else Speed(**{**asdict(found), "name": found.name + ", undecided"}))
    loop, torch_times = torch_crops(inputs, half), []
    for _ in range(12 if loop is not None else 0):
        begin = time.perf_counter()
        loop()  # type: ignore[misc]
        torch_times.append(1e6 * (time.perf_counter() - begin))
    torch_times = torch_times[2:]
    console = Console(width=120)
    title = f"{device.name}, {'float16' if half else 'float32'}; a copy reaches {peak:.0f} GB/s"
    table = Table("kernel", "us: median (range)", "GB/s", "of the copy", "TFLOP/s", title=title)
    for row in results:
        spread = f"{row.median:.1f} ({min(row.times):.1f}-{max(row.times):.1f})"
        operations = f"{row.tera_operations:.0f}" if row.tera_operations else ""
        table.add_row(row.name, spread, f"{row.bandwidth:.0f}", f"{100 * row.share:.0f} %", operations)
    console.print(table)
    if torch_times:
        crops = next(row for row in results if row.name.startswith("crop"))
        median = statistics.median(torch_times)
        console.print(
            f"PyTorch's loop over the regions: {median:.0f} us, {median / crops.median:.0f} times crop_regions"
        )
    else:
        console.print("PyTorch with CUDA is not installed: its loop over the regions was not measured")
    if json_file is not None:
        report: dict[str, Any] = {
            "device": device.name,
            "half": half,
            "copy_bandwidth": peak,
            "torch_loop": torch_times,
        }
        report["kernels"] = [asdict(row) for row in results]
        json_file.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"written: {json_file}")


if __name__ == "__main__":
    typer.run(main)
