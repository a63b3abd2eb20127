"""What a region budget costs and saves on whole images, and the one with the fewest crops within what may be lost."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.calibration.trials.accuracy_budget import AccuracyBudget
from vocabseg.calibration.trials.precision_trials import TrialSet, cpu_engine
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.sections import BUDGET, RegionSpec
from vocabseg.runtime.progress import Progress
from vocabseg.runtime.segmenter.host_stages import HostStages
from vocabseg.runtime.segmenter.segmenter import Segmenter

# What is tried beside no budget at all: each alone, and pairs.
SHARES, LEAST, PAIRED = (0.95, 0.9, 0.8, 0.7), (0.02, 0.05, 0.1), (0.02, 0.05)
GRID: tuple[dict[str, float], ...] = (
    {},
    *({"share_iou": share} for share in SHARES),
    *({"min_objectness": least} for least in LEAST),
    *({"share_iou": share, "min_objectness": least} for share, least in itertools.product(SHARES, PAIRED)),
)


class RegionTrial(msgspec.Struct, frozen=True):
    """One region budget on one set of images.

    Attributes:
        budget: its keys of the region section; none for the published method.
        images: how many.
        regions, crops: of an image, on average; crops are what the image encoder is given.
        miou: mean IoU in percent over all classes; None without labels.
        agreement: percent of the pixels that have the label they have without a budget.
        seconds: median time of an image, from file to labels, all budgets taking turns.
    """

    budget: dict[str, float]
    images: int
    regions: float
    crops: float
    miou: float | None
    agreement: float
    seconds: float

    @property
    def name(self) -> str:
        """As `--set` takes it, without the section."""
        return " ".join(f"{key}={value:g}" for key, value in self.budget.items()) or "none"


def with_budget(region: RegionSpec, budget: dict[str, float]) -> RegionSpec:
    """The section with this budget in place of its own."""
    off: dict[str, Any] = {field.name: field.default for field in msgspec.structs.fields(RegionSpec)}
    return msgspec.structs.replace(region, **({key: off[key] for key in BUDGET} | budget))


def run_region_trials(
    bundle: Bundle, images: TrialSet, progress: Progress, grid: Sequence[dict[str, float]] = GRID
) -> list[RegionTrial]:
    """Try budgets in float32 on this machine's CPU, taking turns on every image; all are compared with the first."""
    segmenter = Segmenter(bundle, "cpu", cpu_engine("float32"), "float32")
    stages = segmenter.stages
    assert isinstance(stages, HostStages)
    segmenter.embed_names(images.vocabulary, progress)
    region, samples = stages.region, [] if images.dataset is None else images.dataset.samples()
    seconds: list[list[float]] = [[] for _ in grid]
    counts = np.zeros((len(grid), 3), np.int64)  # of regions, crops, and pixels with the first one's label
    confusions = [ConfusionMatrix(len(images.vocabulary)) for _ in grid]
    pixels = 0
    for index, path in enumerate(images.files):
        progress("trying every region budget", index, len(images.files))
        labels: dict[int, np.ndarray] = {}
        if index == 0:  # warm up: embeds the names that tell objects, too
            stages.region = with_budget(region, {"share_iou": 1.0})
            segmenter(path, images.vocabulary)
        # Every other image in reverse order, so that none always comes after the same one.
        for place in range(len(grid))[:: 1 if index % 2 == 0 else -1]:
            stages.region = with_budget(region, grid[place])
            begin = time.perf_counter()
            regions = segmenter.propose(path)
            labels[place] = regions.classify(images.vocabulary).labels
            seconds[place].append(time.perf_counter() - begin)
            counts[place, :2] += len(regions.boxes), regions.crops
        pixels += labels[0].size
        truth = None if images.dataset is None else images.dataset.labels(samples[index])
        for place, found in labels.items():
            counts[place, 2] += (found == labels[0]).sum()
            if truth is not None and images.dataset is not None:
                confusions[place].update(found, truth, images.dataset.ignore_index)
    progress("trying every region budget", len(images.files), len(images.files))
    return [
        RegionTrial(
            budget=dict(budget),
            images=len(images.files),
            regions=int(counts[place, 0]) / len(images.files),
            crops=int(counts[place, 1]) / len(images.files),
            miou=None if images.dataset is None else confusions[place].mean_iou(),
            agreement=100 * int(counts[place, 2]) / pixels,
            seconds=float(np.median(seconds[place])),
        )
        for place, budget in enumerate(grid)
    ]


def fewest_within(trials: Sequence[RegionTrial], allowed: AccuracyBudget) -> RegionTrial:
    """The trial with the fewest crops that loses no more than is allowed, the better of equals; the first always is."""
    inside = [trial for trial in trials if not allowed.broken(trial, trials[0])]
    return min(inside, key=lambda trial: (trial.crops, -trial.agreement))
