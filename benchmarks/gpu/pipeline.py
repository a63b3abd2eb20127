"""The whole pipeline on a GPU: labels against a CPU, stages, latency, throughput, and memory over many images.

    python -m vocabseg.benchmarks.gpu.pipeline --json FILE [--bundle FOLDER] [--engine torch] [--precision float16]

The engine "torch" needs nothing but PyTorch; others are the runtime's own. Stages are timed by events on the device.
"""

import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from vocabseg.benchmarks.speed.variants import Timeline
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.errors import ConfigurationError, VocabsegError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.segmenter.segmenter import Segmenter

# Images per second of the published code on its authors' GPU (reported: 1.25 s an image).
PUBLISHED_RATE = 0.8
# The contract's labels that agree, of all pixels, in float32 (those with a clear winner) and FP16.
AGREEMENT = {"float32": 0.9999, "float16": 0.995}
# Bytes that device and host memory may grow by, from the first tenth of the images to the last.
GROWTH = {"device": 32 << 20, "host": 64 << 20}


@dataclass(frozen=True)
class Figure:
    """A measured figure. target: what it should reach (`most`: not exceed); None where there is none."""

    name: str
    value: float
    unit: str
    target: float | None = None
    most: bool = True

    @property
    def missed(self) -> bool:
        """Whether the target is missed."""
        return self.target is not None and (self.value > self.target if self.most else self.value < self.target)


def measure(
    segmenter: Segmenter, image: np.ndarray, names: Sequence[str], repeats: int, count: int
) -> Iterator[Figure]:
    """Stages in ms, latency in ms, images per second over `count` images, and bytes that memory grew by."""
    device = segmenter.device
    assert device is not None
    begin = time.perf_counter()
    segmenter(image, names)
    yield Figure("first image, opening included", time.perf_counter() - begin, "s")
    for _ in range(3):  # the third replays CUDA graphs
        regions = segmenter.propose(image)
        regions.classify(names).labels  # noqa: B018 (waits)
    yield Figure("regions", int(regions.valid.sum()), "")
    stages = defaultdict(list)
    for _ in range(repeats):
        timeline = segmenter.stages.observer = Timeline()
        segmenter(image, names)
        segmenter.stages.observer = None
        for stage, seconds in timeline.seconds().items():
            stages[stage].append(1000 * seconds)
    for stage, times in stages.items():
        yield Figure(stage, statistics.median(times), "ms")
    latencies = []
    for _ in range(repeats):
        device.synchronize()
        begin = time.perf_counter()
        segmenter(image, names)
        latencies.append(1000 * (time.perf_counter() - begin))
    yield Figure("latency", statistics.median(latencies), "ms", 1000 / PUBLISHED_RATE)
    images = [np.ascontiguousarray(np.roll(image, 7 * k, axis=1)) for k in range(16)]
    readings, mark = [], max(count // 10, 1)
    begin = time.perf_counter()
    for number, _ in enumerate(segmenter.segment_many(islice(cycle(images), count), names), 1):
        if number % mark == 0:
            memory = device.memory()
            host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            readings.append({"device": memory["total"] - memory["free"], "host": host})
    yield Figure(
        f"throughput of {count} images", count / (time.perf_counter() - begin), "images/s", PUBLISHED_RATE, False
    )
    for place, most in GROWTH.items():
        grown = readings[-1][place] - readings[0][place]
        yield Figure(f"{place} memory grew by", grown / 2**20, "MiB", most / 2**20)


def agreement(segmenter: Segmenter, image: np.ndarray, names: Sequence[str], precision: str) -> Figure:
    """The share of pixels whose label is a CPU engine's in float32; of the clear ones where that is the contract."""
    host = Segmenter(segmenter.bundle, "cpu", precision="float32")
    wanted = host(image, names)
    equal = segmenter(image, names).labels == wanted.labels
    if precision == "float32":
        best = np.partition(wanted.class_scores(), -2, axis=0)[-2:]
        equal = equal[best[1] - best[0] > 1e-4]
    return Figure(
        f"labels as {host.choice.name} on the CPU", float(equal.mean()), "of the pixels", AGREEMENT[precision], False
    )


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write all figures here, after each.")],
    bundle: Annotated[Path | None, typer.Option(help="Default: the built-in demo model.")] = None,
    engine: Annotated[str, typer.Option(help="torch, or one of the runtime's own.")] = "torch",
    precision: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    classes: Annotated[Path | None, typer.Option(help="A file of names. Default: those of the example.")] = None,
    count: Annotated[int, typer.Option("--images", min=1, help="Of throughput and memory.")] = 1000,
    repeats: Annotated[int, typer.Option(min=1, help="Of stages and latency.")] = 20,
    size: Annotated[tuple[int, int], typer.Option(help="Width and height of the image.")] = (640, 427),
    compare: Annotated[bool, typer.Option(help="Compare the labels with a CPU's.")] = True,
    on_host: Annotated[
        bool, typer.Option(help="The device's memory is the host's: a rehearsal without a GPU.")
    ] = False,
) -> None:
    """Measure; exit code 1 if a target is missed."""
    if precision not in AGREEMENT:
        raise ConfigurationError(f"--precision {precision!r}: give {' or '.join(AGREEMENT)}")
    opened = open_bundle(bundle or demo_folder())
    if engine == "torch":
        from vocabseg.benchmarks.gpu.torch_graph import torch_segmenter

        segmenter = torch_segmenter(opened, precision, on_host=on_host)
    else:
        choose(engine, "cuda", precision, bundle=opened)
        segmenter = Segmenter(opened, "cuda", engine, precision)
    names = ["dog", "grass", "house", "water"]
    if classes is not None:
        names = [line.strip() for line in classes.read_text().splitlines() if line.strip() and line[0] != "#"]
    scene = Image.fromarray(load_image(Path("examples/scene.png"))).resize(size, Image.Resampling.BICUBIC)
    image, figures = np.asarray(scene), []

    def keep(figure: Figure) -> None:
        if on_host and figure.unit in ("ms", "images/s"):
            figure = replace(figure, target=None)  # an emulated GPU owes no speed
        figures.append(figure)
        target = "" if figure.target is None else f" ({'at most' if figure.most else 'at least'} {figure.target:g})"
        print(f"{figure.name}: {figure.value:.6g} {figure.unit}{target}{' MISSED' * figure.missed}", flush=True)
        rows: list[dict[str, Any]] = [asdict(each) for each in figures]
        json_file.write_text(json.dumps(rows, indent=1) + "\n")

    if compare:
        keep(agreement(segmenter, image, names, precision))
    for figure in measure(segmenter, image, names, repeats, count):
        keep(figure)
    missed = [figure.name for figure in figures if figure.missed]
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except VocabsegError as error:
        raise SystemExit(f"pipeline: {error}") from None
