"""What the CUDA kernels take on an H200 at least: counted instructions and bytes against its limits, without a GPU."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from vocabseg.benchmarks.kernels import class_executions, executions, sass
from vocabseg.benchmarks.kernels.inputs import (
    CROP_SIZE,
    ORIGINAL,
    PADDED,
    PATCH_GRID,
    RESIZED,
    THRESHOLD,
    class_probabilities,
    synthetic_inputs,
)
from vocabseg.runtime.kernels import reference
from vocabseg.runtime.kernels.device import launch
from vocabseg.runtime.masks import Masks

# 132 multiprocessors with 4 schedulers that issue an instruction of a warp at 1.98 GHz; bytes per second (data sheet).
ISSUED, MOVED = 132 * 4 * 1.98e9, 4.8e12
MEASURED = Path(__file__).parents[1] / "results" / "2026-11-28-h200.json"
DEPTH, NAMES = 512, 3  # numbers of an embedding, as of ViT-B/16; names of each class
SHARE = 0.9  # of a region budget: masks of at least this IoU share a crop
# Original image, resized, padded.
SIZES = ((ORIGINAL, RESIZED, PADDED), ((480, 640), (640, 853), (640, 864)))


@dataclass(frozen=True)
class Estimate:
    """One launch of a kernel: fewest and most instructions, of warps; bytes, and what was measured, in microseconds."""

    name: str
    image: tuple[int, int]
    fewest: float
    most: float
    bytes: int
    measured: float | None = None

    @property
    def issue(self) -> tuple[float, float]:
        """Microseconds at full issue."""
        return 1e6 * self.fewest / ISSUED, 1e6 * self.most / ISSUED

    @property
    def transfer(self) -> float:
        """Microseconds at full bandwidth."""
        return 1e6 * self.bytes / MOVED


def measured(path: Path = MEASURED) -> dict[str, float]:
    """Median microseconds of the kernels, by name; empty without the file."""
    rows = json.loads(path.read_text())["kernels"]["kernels"] if path.is_file() else []
    return {row["name"]: row["median"] for row in rows}


def estimates(fatbin: bytes, classes: Sequence[int] = (171,)) -> Iterator[Estimate]:
    """The kernels on which an image's time depends, in float16, at the published sizes. Raises EngineError."""
    code, times = sass.listing(fatbin), measured()
    for original, resized, padded in SIZES:
        for kernel, name, runs, size in _launches(original, resized, padded, classes):
            fewest, most = sass.instructions(code[kernel], *runs)
            found = Estimate(name, original, fewest, most, size)
            yield replace(found, measured=times.get(name)) if original == ORIGINAL else found


def _launches(
    original: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int], classes: Sequence[int]
) -> Iterator[tuple[str, str, executions.Executions, int]]:
    """Kernel, name of the measurement, what it runs, and bytes read and written, each once."""
    logits = synthetic_inputs().mask_logits[:, : padded[0] // 4, : padded[1] // 4].astype(np.float16)
    masks = Masks(logits.astype(np.float32), padded, resized, original)
    boxes, areas = reference.region_boxes(masks, THRESHOLD)
    indices = np.flatnonzero(areas)
    limit = reference.threshold_logit(THRESHOLD)
    inside = [reference.upsample(masks.logits[k], padded, resized) > limit for k in indices]
    n, pixels, words = len(masks), resized[0] * resized[1], -(-resized[1] // launch.WARP)
    bits, crop = 4 * n * resized[0] * words, 3 * CROP_SIZE**2 * 2
    bytes_in = 3 * original[0] * original[1] + 3 * pixels + 3 * padded[0] * padded[1] * 2
    yield "resize_normalize_f16", "resize_normalize", executions.resize_normalize(original, resized, padded), bytes_in
    size, full = logits.nbytes + 20 * n + bits, replace(masks, logits=np.full_like(masks.logits, 5))
    yield "region_boxes_f16", "region_boxes", executions.region_boxes(masks), size
    yield "region_boxes_f16", "region_boxes, all inside", executions.region_boxes(full), size
    whole = np.tile(np.array([0, 0, resized[1], resized[0]]), (n, 1))
    for what, (where, sizes) in (("", (boxes, areas)), (", all inside", (whole, np.full(n, pixels)))):
        yield "near_masks", f"near_masks{what}", executions.near_masks(where, sizes, SHARE), bits + 20 * n + n * n
    yield "select_regions", "select_regions", executions.select_regions(areas), 40 * n
    runs, count = executions.crop_regions(inside, boxes[indices], n), len(indices)
    yield "crop_regions_bits_f16", f"crop_regions, {count} regions", runs, 3 * pixels + bits + count * crop
    runs = executions.crop_regions([np.ones(resized, bool)] * n, whole, n)
    yield "crop_regions_bits_f16", f"crop_regions, {n} whole images", runs, 3 * pixels + bits + n * crop
    runs = executions.patch_masks(inside, boxes[indices], PATCH_GRID, n)
    size = bits + count * PATCH_GRID**2 * 2
    yield "patch_masks_bits_f16", f"patch_masks, {count} regions", runs, size
    yield "find_unusable_f16", "find_unusable, mask logits", class_executions.find_unusable(logits.size), logits.nbytes
    for count in classes:
        yield from _class_launches(n, len(indices), count)
        size = logits.nbytes + 4 * n * count + 8 * original[0] * original[1]
        for decided in (True, False):
            runs = executions.compose(masks, class_probabilities(count, decided))
            yield "compose_f16", f"compose, {count} classes{'' if decided else ', undecided'}", runs, size


def _class_launches(n: int, regions: int, classes: int) -> Iterator[tuple[str, str, executions.Executions, int]]:
    """From embeddings in half precision to class probabilities and compose's table, as _launches has them."""
    rows, texts, table = (n, regions), (classes + 1, classes), 4 * n * classes
    logits = 4 * sum(map(math.prod, zip(rows, texts, strict=True)))
    runs = class_executions.similarity(rows, texts, DEPTH)
    yield "similarity", f"similarity, {classes} classes", runs, 2 * DEPTH * sum(rows) + 4 * DEPTH * sum(texts) + logits
    runs = class_executions.best_names(n, classes, NAMES)
    yield "best_names", f"best_names, {NAMES} x {classes}", runs, (NAMES + 1) * table
    runs = class_executions.classify(n, regions, classes)
    yield "classify", f"classify, {classes} classes", runs, logits + table + 4 * (n + regions)
    plan = launch.compose(n, classes, ORIGINAL)
    runs = class_executions.compose_classes(n, classes)
    yield "compose_classes", f"compose_classes, {classes} classes", runs, table + plan.table_bytes


def report(rows: Sequence[Estimate]) -> Table:
    """One row for each estimate."""
    title = "H200, float16: one launch, us at its limits; measured 2026-11-28, on the kernels of that day"
    table = Table("kernel", "image", "instructions, thousands", "full issue", "full bandwidth", "measured", title=title)
    for row in rows:
        (low, high), (h, w) = row.issue, row.image
        counted = f"{row.fewest / 1e3:,.0f}-{row.most / 1e3:,.0f}"
        taken = "" if row.measured is None else f"{row.measured:.1f}"
        table.add_row(row.name, f"{h} x {w}", counted, f"{low:.1f}-{high:.1f}", f"{row.transfer:.1f}", taken)
    return table
