"""Roofline (Williams et al. 2009): the least time each stage needs on this device, and the share that was reached.

Operations of the networks are counted from their graphs; those of the image kernels by the formulas below, two per
multiply-add. Bytes are the ones no implementation can avoid: each input read once, each output written once, weights
read once; what lies between two steps of a stage may stay in a cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from vocabseg.benchmarks.speed.flops import GraphWork, graph_work
from vocabseg.benchmarks.speed.results import BOXES_AND_CROPS, CLASSIFY_AND_COMPOSE, ImageInfo, Peaks, StageRoof, Timing
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import QUERIES, output_shapes
from vocabseg.runtime.segmenter.host_stages import encoder_input_shapes
from vocabseg.runtime.segmenter.stages import input_sizes

Size = tuple[int, int]
FLOAT, COUNT = 4, 8  # bytes of a float32; of a label and its score together
# PyTorch's reference runs some stages together.
TOGETHER = {BOXES_AND_CROPS: ("region_boxes", "crop_regions"), CLASSIFY_AND_COMPOSE: ("classify", "compose")}


@dataclass(frozen=True)
class StageWork:
    """Operations and bytes of a stage for one image."""

    operations: float
    bytes: float


def stage_work(bundle: Bundle, info: ImageInfo, file_bytes: int, classes: int) -> dict[str, StageWork]:
    """The work of every stage for one image; raises BundleError where a graph's sizes do not follow."""
    manifest = bundle.manifest
    proposal = bundle.graph("proposal")
    outputs = {output.name: output.shape for output in proposal.outputs}
    masks, queries = int(outputs["mask_logits"][1]), int(outputs.get(QUERIES, (0,))[-1])
    width = int(bundle.graph("image_encoder").outputs[0].shape[-1])
    resized = input_sizes(manifest.input, *info.size)[0]
    (height, long), (h, w), (padded_h, padded_w) = info.size, resized, info.padded
    rows, columns = output_shapes(proposal, {"image": (1, 3, padded_h, padded_w)})["mask_logits"][-2:]
    mask_bytes = masks * rows * columns * FLOAT
    pixels, small, network = height * long, h * w, padded_h * padded_w
    side = manifest.region.crop_size
    regions, crops = (info.regions, info.encoded) if manifest.encodes else (0, 0)
    crop_bytes = crops * 3 * side * side * FLOAT

    finding = _counted(bundle.graph_path("proposal"), image=(1, 3, padded_h, padded_w))
    encoding = _counted(bundle.graph_path("image_encoder"), **encoder_input_shapes(manifest.region, 1))
    query_bytes = masks * queries * FLOAT
    return {
        "decode": StageWork(0, file_bytes + 3 * pixels),
        "resize_normalize": StageWork(
            _resize_operations(info.size, resized) + 2 * 3 * small, 3 * pixels + 3 * small + 3 * network * FLOAT
        ),
        "proposal": StageWork(
            finding.operations, finding.weight_bytes + 3 * network * FLOAT + mask_bytes + query_bytes
        ),
        # Rows first (one interpolation per column of the logits), then along each row, then the comparison.
        "region_boxes": StageWork(masks * (3 * h * columns + 4 * small), mask_bytes + masks * 20),
        # Per output pixel 16 taps: the mask at each by bilinear interpolation (8), then 3 channels of a multiply-add.
        "crop_regions": StageWork(crops * side * side * 16 * (8 + 3 * 2), 3 * small + mask_bytes + crop_bytes),
        "image_encoder": StageWork(
            encoding.operations * crops,
            (encoding.weight_bytes if crops else 0) + crop_bytes + crops * width * FLOAT,
        ),
        "classify": StageWork(
            2 * classes * (masks * queries + regions * width) + 10 * classes * (masks * bool(queries) + regions),
            query_bytes + regions * width * FLOAT + classes * (queries + width) * FLOAT + masks * classes * FLOAT,
        ),
        # Each mask's value at each pixel by two bilinear interpolations (7 each) and a sigmoid (4), then the winner's
        # score: those of classes that bounds rule out need not be computed.
        "compose": StageWork(pixels * masks * (18 + 2), mask_bytes + masks * classes * FLOAT + pixels * COUNT),
    }  # fmt: skip


def rooflines(
    work: Sequence[Mapping[str, StageWork]], stages: Mapping[str, Timing], peaks: Peaks, precision: Callable[[str], str]
) -> list[StageRoof]:
    """A line per stage, averaged over the images: `work[i]` is that of image i, whose runs the timings mark with i.

    `precision` gives the one in which a stage runs.
    """
    lines = []
    for stage, measured in stages.items():
        parts = TOGETHER.get(stage, (stage,))
        if not all(part in one for part in parts for one in work):
            continue
        product = peaks.products.get(precision(stage), peaks.products["float32"])
        images = sorted(set(measured.images))
        own = [work[image][part] for image in images for part in parts]
        computing, moving = [part.operations / product for part in own], [part.bytes / peaks.copy for part in own]
        floor = sum(map(max, computing, moving)) / len(images)
        runs = list(zip(measured.images, measured.seconds, strict=True))
        seconds = sum(median(spent for image, spent in runs if image == which) for which in images) / len(images)
        lines.append(
            StageRoof(
                stage=stage,
                operations=sum(part.operations for part in own) / len(images),
                bytes=sum(part.bytes for part in own) / len(images),
                floor=floor,
                seconds=seconds,
                share=floor / seconds if seconds else 0.0,
                bound="compute" if sum(computing) >= sum(moving) else "memory",
            )
        )
    return lines


def _resize_operations(size: Size, resized: Size) -> float:
    """Two passes of an antialiased triangle filter, whose support grows with the reduction (as in Pillow)."""
    (height, width), (h, w) = size, resized
    across, down = (2 * max(before / after, 1.0) for before, after in ((width, w), (height, h)))
    return 2.0 * 3 * (height * w * across + h * w * down)


@cache
def _counted(path: Path, **shapes: tuple[int, ...]) -> GraphWork:
    return graph_work(path, shapes)
