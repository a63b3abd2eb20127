"""Every host kernel beside plain PyTorch that does the same work as the reference, and agrees with it."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from vocabseg.benchmarks.kernels.inputs import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGE_MEAN,
    IMAGE_STD,
    ORIGINAL,
    PADDED,
    PATCH_GRID,
    RESIZED,
    THRESHOLD,
    Inputs,
    class_probabilities,
    cropping,
    synthetic_inputs,
)
from vocabseg.benchmarks.process_memory import process_memory
from vocabseg.runtime.errors import VocabsegError
from vocabseg.runtime.kernels import load_kernels


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
class KernelTiming:
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

    def kernel_patches() -> Any:
        return kernels.patch_masks(
            inputs.masks, inputs.boxes, inputs.indices, cropping(False), PATCH_GRID, threads=threads
        )

    def torch_patches() -> Any:
        inside = reference.upsample_masks(masks, PADDED, RESIZED)[torch.from_numpy(inputs.indices).long()] > THRESHOLD
        cuts = [
            mask[None, None, y1:y2, x1:x2].float()
            for mask, (x1, y1, x2, y2) in zip(inside, inputs.boxes.tolist(), strict=True)
        ]
        resized = torch.cat([torch.nn.functional.interpolate(cut, size=(224, 224), mode="nearest") for cut in cuts])
        return torch.nn.functional.avg_pool2d(resized, 224 // PATCH_GRID).ceil()[:, 0]

    yield Contender(
        f"patch_masks, {len(inputs.boxes)} regions",
        kernel_patches,
        torch_patches,
        difference_of_most,
        0,
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
    """The largest difference of two arrays."""
    return float(np.abs(found - wanted.numpy()).max())


def difference_of_most(found: Any, wanted: Any) -> float:
    """The difference that 99.99 % of the values stay within."""
    return float(np.quantile(np.abs(found - wanted.numpy()), 0.9999))


def box_difference(found: Any, wanted: Any) -> float:
    """The largest difference of boxes and areas, in pixels, of the masks that PyTorch finds valid."""
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


def measure(contender: Contender, repeats: int, seconds: float) -> KernelTiming:
    """Up to `repeats` turns each within `seconds`, but at least 3; raises WrongResultError."""
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
    return KernelTiming(contender.name, times["kernel"], times["torch"], error, contender.tolerance, ratio)


def many_classes(threads: int, classes: int) -> tuple[float, int | None]:
    """Seconds, and bytes of memory beyond the arguments, that compose takes for so many classes.

    To be run in a process of its own. PyTorch would need 4 bytes for each class and pixel of both sizes: 35 GB for
    10,000 classes.
    """
    inputs, probabilities = synthetic_inputs(), class_probabilities(classes, decided=True)
    before, start = process_memory("VmRSS"), time.perf_counter()
    load_kernels().compose(inputs.masks, probabilities, threads=threads)
    seconds, after = time.perf_counter() - start, process_memory("VmHWM")
    return seconds, None if before is None or after is None else max(after - before, 0)
