"""The CUDA kernels on a GPU: time, share of the measured memory bandwidth, and PyTorch's loop over the regions.

Inputs rotate over more memory than the second-level cache holds, a CUDA graph replays the launches where one can be
captured, and events on the stream take the time. The peak is what a plain copy on the same GPU reaches.

    python -m vocabseg.benchmarks.kernel_bench_cuda [--json FILE]
"""

import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vocabseg.benchmarks.kernels.cuda import (
    Arrays,
    calls,
    copy_bandwidth,
    rotations,
    speed,
    time_calls,
    time_torch_crops,
)
from vocabseg.benchmarks.kernels.inputs import CROP_SIZE, class_probabilities, synthetic_inputs
from vocabseg.runtime.cuda.device import open_device
from vocabseg.runtime.errors import VocabsegError
from vocabseg.runtime.kernels.device.face import CudaKernels


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    classes: Annotated[int, typer.Option(help="Of compose.")] = 171,
    half: Annotated[bool, typer.Option(help="Mask logits, network input and crops in float16.")] = True,
    ordinal: Annotated[int, typer.Option(help="Which GPU.")] = 0,
) -> None:
    """Measure the CUDA kernels."""
    device = open_device(ordinal)
    kernels, stream, inputs = CudaKernels(device), device.stream(), synthetic_inputs()
    peak = copy_bandwidth(device, stream)
    results = []
    for decided in (True, False):
        probabilities = class_probabilities(classes, decided)
        size = inputs.mask_logits.nbytes + 100 * 3 * CROP_SIZE**2 * (2 if half else 4)
        arrays = [Arrays(device, stream, inputs, probabilities, half) for _ in range(rotations(size))]
        prepared = calls(kernels, stream, arrays, len(inputs.indices))
        for call in prepared if decided else prepared[-1:]:
            found = speed(call, time_calls(call, len(arrays), stream), peak)
            results.append(found if decided else replace(found, name=f"{found.name}, undecided"))
    torch_times = time_torch_crops(inputs, half)
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
        console.print("PyTorch with CUDA is not installed: the loop over the regions was not measured")
    if json_file is not None:
        report = {
            "device": device.name, "half": half, "copy_bandwidth": peak, "torch_loop": torch_times,
            "kernels": [asdict(row) for row in results],
        }  # fmt: skip
        json_file.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"written: {json_file}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except VocabsegError as error:
        raise SystemExit(f"kernel_bench_cuda: {error}") from None
