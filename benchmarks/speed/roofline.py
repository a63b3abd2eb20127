"""Roofline (Williams et al. 2009): the least time each stage needs on this device, and the share that was reached.

Operations of the networks are counted from their graphs; those of the image kernels by the formulas below, two per
multiply-add. Bytes are the ones no implementation can avoid: each input read once, each output written once, weights
read once; what lies between two steps of a stage may stay in a cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vocabseg.benchmarks.speed.flops import GraphWork, graph_work
from vocabseg.benchmarks.speed.results import (
    BOXES_AND_CROPS,
    CLASSIFY_AND_COMPOSE,
    ImageInfo,
    Peaks,
    StageRoof,
    Timing,
)
from vocabseg.runtime.bundle.folder import Bundle

Size = tuple[int, int]
FLOAT, COUNT = 4, 8  # bytes of a float32; of a label and its score together


@dataclass(frozen=True)
class Work:
    """Operations and bytes of a stage for one image."""

    operations: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.operations + other.operations, self.bytes + other.bytes)


@dataclass(frozen=True)
class Workload:
    """What the work of an image depends on: its file's bytes, sizes (H, W), (h, w), (Hp, Wp), regions V, classes K."""

    file_bytes: int
    size: Size
    resized: Size
    padded: Size
    regions: int
    classes: int


def stage_work(bundle: Bundle, load: Workload) -> dict[str, Work]:
    """The work of every stage for one image; raises BundleError where a graph's sizes do not follow."""
    manifest = bundle.manifest
    proposal = bundle.graph("proposal")
    outputs = {output.name: output.shape for output in proposal.outputs}
    masks, width = int(outputs["query_embeddings"][1]), int(outputs["query_embeddings"][2])
    (height, long), (h, w), (padded_h, padded_w) = load.size, load.resized, load.padded
    mask_bytes = masks * (padded_h // 4) * (padded_w // 4) * FLOAT
    pixels, small, network = height * long, h * w, padded_h * padded_w
    side = manifest.region.crop_size
    regions = load.regions if manifest.ensemble.enabled else 0
    crop_bytes = regions * 3 * side * side * FLOAT

    finding = _graph(bundle, "proposal", "image", (1, 3, padded_h, padded_w))
    encoding = _graph(bundle, "image_encoder", "crops", (1, 3, side, side))
    query_bytes = masks * width * FLOAT
    return {
        "decode": Work(0, load.file_bytes + 3 * pixels),
        "resize_normalize": Work(
            _resize_operations(load.size, load.resized) + 2 * 3 * small, 3 * pixels + 3 * small + 3 * network * FLOAT
        ),
        "proposal": Work(
            finding.operations, finding.weight_bytes + 3 * network * FLOAT + mask_bytes + query_bytes
        ),
        # Rows first (one interpolation per column of the logits), then along each row, then the comparison.
        "region_boxes": Work(masks * (3 * h * (padded_w // 4) + 4 * small), mask_bytes + masks * 20),
        # Per output pixel 16 taps: the mask at each by bilinear interpolation (8), then 3 channels of a multiply-add.
        "crop_regions": Work(regions * side * side * 16 * (8 + 3 * 2), 3 * small + mask_bytes + crop_bytes),
        "image_encoder": Work(
            encoding.operations * regions,
            (encoding.weight_bytes if regions else 0) + crop_bytes + regions * width * FLOAT,
        ),
        "classify": Work(
            2 * width * load.classes * (masks + regions) + 10 * load.classes * (masks + regions),
            query_bytes + regions * width * FLOAT + 2 * load.classes * width * FLOAT + masks * load.classes * FLOAT,
        ),
        # Each mask's value at each pixel by two bilinear interpolations (7 each) and a sigmoid (4), then the winner's
        # score: those of classes that bounds rule out need not be computed.
        "compose": Work(pixels * masks * (18 + 2), mask_bytes + masks * load.classes * FLOAT + pixels * COUNT),
    }  # fmt: skip


def rooflines(
    work: Sequence[Mapping[str, Work]],
    stages: Mapping[str, Timing],
    peaks: Peaks,
    precision: Callable[[str], str],
) -> list[StageRoof]:
    """A line per stage, averaged over the images: `work[i]` is that of image i, whose runs the timings mark with i.

    `precision` tells in which one a stage runs.
    """
    lines = []
    for stage, measured in stages.items():
        parts = _parts(stage)
        product = peaks.products.get(precision(stage), peaks.products["float32"])
        if not all(part in one for part in parts for one in work):
            continue
        floors, seconds = 0.0, 0.0
        total, computing, moving = Work(0, 0), 0.0, 0.0
        present = sorted(set(measured.images))
        for image in present:
            own = [work[image][part] for part in parts]
            image_seconds = _median([s for s, i in zip(measured.seconds, measured.images, strict=True) if i == image])
            floors += sum(max(part.operations / product, part.bytes / peaks.copy) for part in own)
            seconds += image_seconds
            for part in own:
                total = total + part
                computing += part.operations / product
                moving += part.bytes / peaks.copy
        count = len(present)
        lines.append(
            StageRoof(
                stage=stage,
                operations=total.operations / count,
                bytes=total.bytes / count,
                floor=floors / count,
                seconds=seconds / count,
                share=floors / seconds if seconds else 0.0,
                bound="compute" if computing >= moving else "memory",
            )
        )
    return lines


def workload(info: ImageInfo, resized: Size, file_bytes: int, classes: int) -> Workload:
    """The workload of a measured image."""
    return Workload(file_bytes, info.size, resized, info.padded, info.regions, classes)


def _parts(stage: str) -> tuple[str, ...]:
    """The stages that a line stands for: PyTorch's reference runs some of them together."""
    together = {BOXES_AND_CROPS: ("region_boxes", "crop_regions"), CLASSIFY_AND_COMPOSE: ("classify", "compose")}
    return together.get(stage, (stage,))


def _resize_operations(size: Size, resized: Size) -> float:
    """Two passes of an antialiased triangle filter, whose support grows with the reduction (as in Pillow)."""
    (height, width), (h, w) = size, resized
    across, down = (2 * max(before / after, 1.0) for before, after in ((width, w), (height, h)))
    return 2.0 * 3 * (height * w * across + h * w * down)


def _graph(bundle: Bundle, graph: str, name: str, shape: tuple[int, ...]) -> GraphWork:
    return _counted(bundle.graph_path(graph), name, shape)


@cache
def _counted(path: Path, name: str, shape: tuple[int, ...]) -> GraphWork:
    return graph_work(path, {name: shape})


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
