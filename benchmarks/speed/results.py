"""What a benchmark found, as plain typed data: it is written as JSON, and older files are read for comparison."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.files import decode_json

VERSION = 1
# In the order in which an image passes them. PyTorch's reference runs some of them together.
STAGES = (
    "decode", "resize_normalize", "proposal", "region_boxes", "crop_regions", "image_encoder", "classify", "compose",
)  # fmt: skip
# Those in which a network runs, by their graphs' names.
GRAPH_STAGES = ("proposal", "image_encoder")
BOXES_AND_CROPS = "region_boxes + crop_regions"
CLASSIFY_AND_COMPOSE = "classify + compose"
TOTAL = "end to end"


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of repeated runs; `images[i]` says which input run i had.

    `spread` is the distance between the quartiles once the difference between the images is taken out: how far the
    time of one image varies.
    """

    p50: float
    p90: float
    p99: float
    spread: float
    seconds: list[float]
    images: list[int]


class BatchTiming(msgspec.Struct, frozen=True, kw_only=True):
    """`segment_many` on batches of `images`: seconds of a batch, in each pass over all images, and rates."""

    images: int
    timing: Timing
    images_per_second: float
    regions_per_second: float


class ColdStart(msgspec.Struct, frozen=True, kw_only=True):
    """From the start of a fresh process to its first labels, in seconds; `steps` are the medians of its parts."""

    timing: Timing
    steps: dict[str, float]


class TextTiming(msgspec.Struct, frozen=True, kw_only=True):
    """Encoding class names that are not in the cache: seconds per 1,000 of them, measured with `names` of them."""

    per_thousand: float
    names: int
    timing: Timing


class StageRoof(msgspec.Struct, frozen=True, kw_only=True):
    """One stage, per image: its work, the least time this device needs for that, and the time it took.

    `share` is floor / seconds; `bound` says whether "compute" or "memory" sets the floor.
    """

    stage: str
    operations: float
    bytes: float
    floor: float
    seconds: float
    share: float
    bound: str


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the parity contract; without a `limit` it is only reported. `least`: the limit is a lower one."""

    stage: str
    what: str
    value: float
    limit: float | None = None
    least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the figure is within its limit; NaN is not."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.least else self.value <= self.limit


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How near a variant is to the one it is compared with; `broken` is the first stage beyond its tolerance."""

    against: str
    precision: str
    checks: list[Check]
    broken: str | None
    worst_image: int
    agreement: list[float]
    miou: "SceneAccuracy | None" = None


class SceneAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Mean IoU in percent on labelled scenes, the other's too, and the 95 % interval of the difference."""

    scenes: int
    miou: float
    other: float
    low: float
    high: float


class VariantResult(msgspec.Struct, frozen=True, kw_only=True):
    """One way of running the model; where it could not be measured, `reason` says why and nothing else is there.

    `relabelled` is the share of all pixels whose labels the region budget changes.
    """

    name: str
    precision: str
    reason: str | None = None
    stages: dict[str, Timing] = {}
    total: Timing | None = None
    batches: list[BatchTiming] = []
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    cold_start: ColdStart | None = None
    text: TextTiming | None = None
    roof: list[StageRoof] = []
    parity: Parity | None = None
    relabelled: float | None = None


class Peaks(msgspec.Struct, frozen=True, kw_only=True):
    """The most this device did in this run: operations per second of a matrix product by precision, bytes of a copy."""

    products: dict[str, float]
    copy: float
    threads: int
    how: str


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One input: its size (H, W), the network's input size (Hp, Wp), how many regions were found in it, and how many
    crops were encoded for them: as many (None), or fewer under a region budget."""

    name: str
    size: tuple[int, int]
    padded: tuple[int, int]
    regions: int
    crops: int | None = None

    @property
    def encoded(self) -> int:
        """Crops encoded."""
        return self.regions if self.crops is None else self.crops


class BenchmarkReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole benchmark."""

    version: int
    date: str
    machine: dict[str, str]
    bundle: str
    bundle_digest: str
    settings: list[str]
    classes: int
    images: list[ImageInfo]
    rounds: int
    peaks: Peaks
    oracle: str
    oracle_reason: str
    variants: list[VariantResult]
    region_budget: str = "none"

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Variant and first broken stage, where the parity contract is broken."""
        found = [(variant.name, variant.parity.broken) for variant in self.variants if variant.parity is not None]
        return [(name, stage) for name, stage in found if stage is not None]


def stage_place(stage: str) -> int:
    """Where a stage stands in the pipeline; unknown ones come last."""
    first = stage.split(" + ")[0]
    return STAGES.index(first) if first in STAGES else len(STAGES)


def timing(seconds: Sequence[float], images: Sequence[int] | None = None) -> Timing:
    """The statistics of measured seconds; raises ValueError without any."""
    if not seconds:
        raise ValueError("no run was measured")
    values = np.asarray(seconds, np.float64)
    which = np.zeros(len(values), int) if images is None else np.asarray(images, int)
    relative = values.copy()
    for image in np.unique(which):
        relative[which == image] -= np.median(values[which == image])
    low, high = np.percentile(relative, [25, 75])
    p50, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
    return Timing(p50=p50, p90=p90, p99=p99, spread=float(high - low), seconds=values.tolist(), images=which.tolist())


def encode_report(report: BenchmarkReport) -> bytes:
    """JSON, indented."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read_report(path: Path) -> BenchmarkReport:
    """The report in a JSON file; raises ConfigurationError where there is none that this version can read."""

    class OnlyVersion(msgspec.Struct):
        version: int

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read the report {path}: {(error.strerror or str(error)).lower()}") from None
    try:
        version = decode_json(data, OnlyVersion).version
        if version > VERSION:
            raise ConfigurationError(f"{path} has version {version}, this vocabseg reads up to {VERSION}: upgrade it")
        return decode_json(data, BenchmarkReport)
    except ValueError as error:
        raise ConfigurationError(f"{path} is no report of `vocabseg bench` ({error})") from None
