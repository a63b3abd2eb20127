"""From what was measured to the report: statistics, rooflines, and the verdict on parity."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import numpy as np

from vocabseg.benchmarks.speed.engine import stage_precision
from vocabseg.benchmarks.speed.parity import Figures, judge, scene_accuracy
from vocabseg.benchmarks.speed.results import (
    VERSION,
    BatchTiming,
    BenchmarkReport,
    ColdStart,
    ImageInfo,
    Parity,
    Peaks,
    TextTiming,
    VariantResult,
    stage_place,
    timing,
)
from vocabseg.benchmarks.speed.roofline import StageWork, rooflines, stage_work
from vocabseg.benchmarks.speed.selection import Benchmark
from vocabseg.benchmarks.speed.variants import TimedRun, VariantSpec


@dataclass
class Contestant:
    """A variant while it is measured; once it has a `reason`, it failed and is measured no further."""

    spec: VariantSpec
    process: Any
    reason: str | None = None
    runs: list[tuple[int, TimedRun]] = field(default_factory=list)
    batches: dict[int, list[float]] = field(default_factory=dict)
    text: list[float] = field(default_factory=list)
    memory: int | None = None
    device_memory: int | None = None
    cold: ColdStart | None = None
    figures: list[Figures] = field(default_factory=list)
    scenes: list[np.ndarray] = field(default_factory=list)
    relabelled: float | None = None


def assemble(
    benchmark: Benchmark,
    contestants: Sequence[Contestant],
    oracle: Contestant | None,
    infos: list[ImageInfo],
    truths: Sequence[np.ndarray],
    peaks: Peaks,
    machine: dict[str, str],
    rounds: int,
) -> BenchmarkReport:
    """The report; `infos` are the images', `truths` the label maps of the scenes that were segmented."""
    bundle = benchmark.bundle
    manifest = msgspec.json.encode(bundle.manifest, order="sorted")
    work = [
        stage_work(bundle, info, path.stat().st_size, len(benchmark.vocabulary))
        for info, path in zip(infos, benchmark.images, strict=True)
    ]
    results = []
    for one in contestants:
        parity = None
        if oracle is not None and one.figures and one.reason is None:
            miou = scene_accuracy(one.scenes, oracle.scenes, truths) if one.scenes else None
            parity = judge(one.figures, benchmark.oracle_reason, one.spec.precision, miou)
        results.append(_result(benchmark, one, infos, work, peaks, parity))
    return BenchmarkReport(
        version=VERSION,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine,
        bundle=bundle.manifest.name,
        bundle_digest=hashlib.sha256(manifest).hexdigest()[:16],
        settings=list(benchmark.settings),
        region_budget=bundle.manifest.region.budget,
        classes=len(benchmark.vocabulary),
        images=infos,
        rounds=rounds,
        peaks=peaks,
        oracle="none" if benchmark.oracle is None else benchmark.oracle.name,
        oracle_reason=benchmark.oracle_reason,
        variants=[*results, *benchmark.missing],
    )


def batches_of(images: int, count: int) -> list[list[int]]:
    """Batches of `count` image indices, so many that every image is in one; the first images may come again."""
    return [[(start + place) % images for place in range(count)] for start in range(0, images, count)]


def fresh_names(benchmark: Benchmark) -> list[str]:
    """Enough names for `effort.names` sequences: a template makes a sequence of each."""
    templates = max(1, len(benchmark.bundle.manifest.prompts.query.templates))
    return [f"thing number {index}" for index in range(-(-benchmark.effort.names // templates))]


def _result(
    benchmark: Benchmark,
    one: Contestant,
    infos: Sequence[ImageInfo],
    work: Sequence[Mapping[str, StageWork]],
    peaks: Peaks,
    parity: Parity | None,
) -> VariantResult:
    spec = one.spec
    if one.reason is not None or not one.runs:
        return VariantResult(name=spec.name, precision=spec.precision, reason=one.reason or "it was not run")
    images = [index for index, _ in one.runs]
    seen = sorted({stage for _, run in one.runs for stage in run.stages}, key=stage_place)
    stages = {stage: timing([run.stages.get(stage, 0.0) for _, run in one.runs], images) for stage in seen}
    return VariantResult(
        name=spec.name,
        precision=spec.precision,
        stages=stages,
        total=timing([run.total for _, run in one.runs], images),
        batches=[_batch(infos, count, seconds) for count, seconds in sorted(one.batches.items())],
        peak_host_bytes=one.memory,
        peak_device_bytes=one.device_memory,
        cold_start=one.cold,
        text=_text(benchmark, one),
        # The peaks are those of the machine without limits.
        roof=[] if spec.limit else rooflines(work, stages, peaks, partial(stage_precision, spec)),
        parity=parity,
        relabelled=one.relabelled,
    )


def _batch(infos: Sequence[ImageInfo], count: int, seconds: Sequence[float]) -> BatchTiming:
    measured = timing(seconds)
    groups = batches_of(len(infos), count)
    regions = sum(infos[index].regions for group in groups for index in group) / len(groups)
    return BatchTiming(
        images=count, timing=measured, images_per_second=count / measured.p50, regions_per_second=regions / measured.p50
    )


def _text(benchmark: Benchmark, one: Contestant) -> TextTiming | None:
    if not one.text:
        return None
    measured, names = timing(one.text), len(fresh_names(benchmark))
    return TextTiming(per_thousand=1000 * measured.p50 / names, names=names, timing=measured)
