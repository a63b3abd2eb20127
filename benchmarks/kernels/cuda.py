"""Calls of the CUDA kernels on a GPU, timed by events on the stream, on inputs that rotate."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vocabseg.benchmarks.kernels.inputs import (
    CLIP_MEAN,
    CLIP_STD,
    CROP_SIZE,
    IMAGE_MEAN,
    IMAGE_STD,
    ORIGINAL,
    PADDED,
    PATCH_GRID,
    RESIZED,
    THRESHOLD,
    Inputs,
    cropping,
)
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.kernels.device.arguments import CropSource
from vocabseg.runtime.kernels.device.face import CudaKernels

# More than the second-level cache of any GPU so far (126 MB on Blackwell).
ROTATION_BYTES = 256_000_000


@dataclass(frozen=True)
class KernelCall:
    """A call of a kernel on one of several copies of its arrays: `launch(k)` works on copy k.

    bytes: read and written by one call, each once. operations: twice the multiply-adds on tensor cores.
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


def speed(call: KernelCall, times: Sequence[float], peak: float) -> Speed:
    """times: microseconds of a call; peak: GB/s."""
    median = statistics.median(times)
    bandwidth = call.bytes / median / 1e3
    return Speed(call.name, median, list(times), bandwidth, bandwidth / peak, call.operations / median / 1e6)


def time_calls(call: KernelCall, copies: int, stream: Stream, repeats: int = 30) -> list[float]:
    """Microseconds of a call, from `repeats` rounds over all copies."""

    def round_of_calls() -> None:
        for k in range(copies):
            call.launch(k)

    round_of_calls()  # from here on tables and workspaces exist
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
    call = KernelCall("copy", lambda _: stream.copy(target, source), 2 * size)
    return call.bytes / statistics.median(time_calls(call, 2, stream, 10)) / 1e3


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
        self.patches = device.empty((n, PATCH_GRID, PATCH_GRID), dtype)
        self.labels, self.scores = device.empty(ORIGINAL, np.int32), device.empty(ORIGINAL, np.float32)


def calls(kernels: CudaKernels, stream: Stream, arrays: Sequence[Arrays], regions: int) -> list[KernelCall]:
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

    def source(a: Arrays) -> CropSource:
        return CropSource(a.resized, a.masks, a.bits, a.crop_boxes, a.order, a.count, 0)

    def crops(k: int) -> None:
        kernels.crop_regions([source(arrays[k])], cropping(), arrays[k].crops, stream)

    def patches(k: int) -> None:
        kernels.patch_masks([source(arrays[k])], cropping(), arrays[k].patches, stream)

    def compose(k: int) -> None:
        a = arrays[k]
        kernels.compose(a.masks, a.probabilities, None, None, a.labels, a.scores, stream)

    def size(*names: str) -> int:
        arrays = {**vars(first), "logits": first.masks.logits}
        return sum(arrays[name].nbytes for name in names)

    written_crops, written_patches = (array.nbytes // masks * regions for array in (first.crops, first.patches))
    return [
        KernelCall("resize_normalize", resize, size("image", "resized", "network_input")),
        KernelCall("region_boxes", boxes, size("logits", "boxes", "areas", "bits")),
        KernelCall("select_regions", select, size("boxes", "areas", "order", "crop_boxes")),
        KernelCall(f"crop_regions, {regions} regions", crops, size("resized", "bits") + written_crops),
        KernelCall(f"patch_masks, {regions} regions", patches, size("bits") + written_patches),
        KernelCall(
            f"compose, {classes} classes",
            compose,
            size("logits", "probabilities", "labels", "scores"),
            2 * masks * classes * ORIGINAL[0] * ORIGINAL[1],
        ),
    ]


def time_torch_crops(inputs: Inputs, half: bool, repeats: int = 10) -> list[float]:
    """Microseconds of the loop over regions that crop_regions replaces, in PyTorch on the GPU; empty without one."""
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    logits = torch.from_numpy(inputs.mask_logits).cuda()
    picture = torch.from_numpy(inputs.resized).cuda().permute(2, 0, 1).float()
    mean, std = (torch.tensor(values, device="cuda").view(3, 1, 1) * 255 for values in (CLIP_MEAN, CLIP_STD))
    resize = torch.nn.functional.interpolate
    times = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        full = resize(logits[None], PADDED, mode="bilinear", align_corners=False)[0, :, : RESIZED[0], : RESIZED[1]]
        inside = full.sigmoid() > THRESHOLD
        crops = []
        for (x1, y1, x2, y2), index in zip(inputs.boxes.tolist(), inputs.indices.tolist(), strict=True):
            mask = inside[index, y1:y2, x1:x2]
            cut = (torch.where(mask, picture[:, y1:y2, x1:x2], mean) - mean) / std
            crops.append(resize(cut[None], (CROP_SIZE, CROP_SIZE), mode="bicubic", align_corners=False))
        torch.cat(crops).to(torch.float16 if half else torch.float32)
        torch.cuda.synchronize()
        times.append(1e6 * (time.perf_counter() - begin))
    return times[2:]
