"""From what was measured to the report: statistics, rooflines, and the verdict on parity."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import numpy as np

from vocabseg.benchmarks.speed.parity import LIMITS, Figures, first_broken, judge
from vocabseg.benchmarks.speed.results import (
    VERSION,
    BatchTiming,
    ColdStart,
    ImageInfo,
    Parity,
    Peaks,
    Report,
    TextTiming,
    Timing,
    VariantResult,
    stage_place,
    timing,
)
from vocabseg.benchmarks.speed.roofline import Work, rooflines, stage_work, workload
from vocabseg.benchmarks.speed.scenes import scene_accuracy, scene_check
from vocabseg.benchmarks.speed.selection import Plan
from vocabseg.benchmarks.speed.variants import Run, Spec, stage_precision
from vocabseg.runtime.kernels.geometry import resized_size


@dataclass
class Entry:
    """A variant while it is measured; once it has a `reason`, it failed and is measured no further."""

    spec: Spec
    worker: Any
    reason: str | None = None
    runs: list[tuple[int, Run]] = field(default_factory=list)
    batches: dict[int, list[float]] = field(default_factory=dict)
    text: list[float] = field(default_factory=list)
    memory: int | None = None
    device_memory: int | None = None
    cold: ColdStart | None = None
    figures: list[Figures] = field(default_factory=list)
    scenes: list[np.ndarray] = field(default_factory=list)


def assemble(
    plan: Plan,
    entries: Sequence[Entry],
    oracle: Entry | None,
    infos: list[ImageInfo],
    truths: Sequence[np.ndarray],
    peaks: Peaks,
    machine: dict[str, str],
    rounds: int,
) -> Report:
    """The report; `infos` are the images', `truths` the label maps of the scenes that were segmented."""
    manifest = msgspec.json.encode(plan.bundle.manifest, order="sorted")
    work = _work(plan, infos)
    results = []
    for entry in entries:
        parity = None
        if oracle is not None and entry.figures and entry.reason is None:
            parity = _parity(plan, entry, oracle, truths)
        results.append(_result(plan, entry, infos, work, peaks, parity))
    return Report(
        version=VERSION,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine,
        bundle=plan.bundle.manifest.name,
        bundle_digest=hashlib.sha256(manifest).hexdigest()[:16],
        settings=list(plan.settings),
        classes=len(plan.vocabulary),
        images=infos,
        rounds=rounds,
        peaks=peaks,
        oracle="none" if plan.oracle is None else plan.oracle.name,
        oracle_reason=plan.oracle_reason,
        variants=[*results, *plan.missing],
    )


def batches_of(images: int, count: int) -> list[list[int]]:
    """Batches of `count` image indices, so many that every image is in one; the first images may come again."""
    return [[(start + place) % images for place in range(count)] for start in range(0, images, count)]


def fresh_names(plan: Plan) -> list[str]:
    """Enough names for `budget.names` sequences: a template makes a sequence of each."""
    if not plan.budget.names:
        return []
    each = max(1, len(plan.bundle.manifest.prompts.query.templates))
    return [f"thing number {index}" for index in range(max(1, -(-plan.budget.names // each)))]


def _result(
    plan: Plan,
    entry: Entry,
    infos: Sequence[ImageInfo],
    work: Sequence[dict[str, Work]],
    peaks: Peaks,
    parity: Parity | None,
) -> VariantResult:
    spec = entry.spec
    if entry.reason is not None or not entry.runs:
        return VariantResult(name=spec.name, precision=spec.precision, reason=entry.reason or "it was not run")
    images = [index for index, _ in entry.runs]
    seen = {stage for _, run in entry.runs for stage in run.stages}
    stages: dict[str, Timing] = {
        stage: timing([run.stages.get(stage, 0.0) for _, run in entry.runs], images)
        for stage in sorted(seen, key=stage_place)
    }
    return VariantResult(
        name=spec.name,
        precision=spec.precision,
        stages=stages,
        total=timing([run.total for _, run in entry.runs], images),
        batches=[_batch(infos, count, seconds) for count, seconds in sorted(entry.batches.items())],
        peak_host_bytes=entry.memory,
        peak_device_bytes=entry.device_memory,
        cold_start=entry.cold,
        text=_text(plan, entry),
        roof=rooflines(work, stages, peaks, partial(stage_precision, spec)),
        parity=parity,
    )


def _parity(plan: Plan, entry: Entry, oracle: Entry, truths: Sequence[np.ndarray]) -> Parity:
    parity = judge(entry.figures, plan.oracle_reason, entry.spec.precision)
    if not entry.scenes:
        return parity
    miou = scene_accuracy(entry.scenes, oracle.scenes, truths)
    checks = [*parity.checks, scene_check(miou, LIMITS[entry.spec.precision].miou)]
    return msgspec.structs.replace(parity, checks=checks, broken=first_broken(checks), miou=miou)


def _batch(infos: Sequence[ImageInfo], count: int, seconds: Sequence[float]) -> BatchTiming:
    measured = timing(seconds)
    groups = batches_of(len(infos), count)
    regions = sum(infos[index].regions for group in groups for index in group) / len(groups)
    return BatchTiming(
        images=count,
        timing=measured,
        images_per_second=count / measured.p50,
        regions_per_second=regions / measured.p50,
    )


def _text(plan: Plan, entry: Entry) -> TextTiming | None:
    if not entry.text:
        return None
    measured, names = timing(entry.text), len(fresh_names(plan))
    return TextTiming(per_thousand=1000 * measured.p50 / names, names=names, timing=measured)


def _work(plan: Plan, infos: Sequence[ImageInfo]) -> list[dict[str, Work]]:
    """The work of every stage, per image."""
    spec = plan.bundle.manifest.input
    found = []
    for info, image in zip(infos, plan.images, strict=True):
        resized = resized_size(*info.size, spec.min_size, spec.max_size)
        load = workload(info, resized, image.stat().st_size, len(plan.vocabulary))
        found.append(stage_work(plan.bundle, load))
    return found
