"""Plans of a bundle's graphs, in its `engines` folder: each with its record, whole or not at all."""

import hashlib
import os
import shutil
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from vocabseg.export.tensorrt.builder import BuildOptions, build_plan
from vocabseg.export.tensorrt.explain import Explanation
from vocabseg.export.tensorrt.target import PlanTarget
from vocabseg.runtime.bundle.folder import Bundle, check_changeable
from vocabseg.runtime.bundle.plans import (
    ENGINES,
    FORMAT,
    RECORD,
    EngineRecord,
    Plan,
    PlanRecord,
    Profile,
    plan_variant,
    read_plans,
)
from vocabseg.runtime.files import cache_folder, whole_folder
from vocabseg.runtime.progress import Progress, silent


def build_engine(
    bundle: Bundle,
    graph: str,
    precision: str,
    profiles: list[Profile],
    options: BuildOptions,
    target: PlanTarget,
    progress: Progress = silent,
) -> tuple[Plan, Explanation]:
    """Build the plan of a graph and put it into `engines/<target's key>/` of the bundle; returns it and what is in it.

    Plans of other graphs and precisions stay there, unless their graph has changed. Until the plan is complete, and if
    the build fails or is stopped, the folder is what it was. Raises EngineError, OutputError, and
    BundleError for the built-in demo model.
    """
    check_changeable(bundle.folder)  # before minutes of work
    record = bundle.graph(graph, plan_variant(precision))
    started = time.monotonic()
    path = bundle.graph_path(graph, plan_variant(precision))
    built = build_plan(path, profiles, options, target, timing_cache(target), progress)
    device, info = target.device, target.package.info
    plan = PlanRecord(
        graph=graph,
        precision=precision,
        graph_digest=record.digest(),
        file=f"{graph}-{precision}.plan",
        bytes=len(built.data),
        sha256=hashlib.sha256(built.data).hexdigest(),
        gpu="" if device is None else device.name,
        compute_capability=(0, 0) if device is None else device.compute_capability,
        driver="" if device is None else str(device.driver_version),
        engine=info.engine,
        generations=target.capabilities,
        tensorrt=info.version,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        profiles=profiles,
        inputs=record.inputs,
        outputs=record.outputs,
        flags=built.flags,
        optimization_level=options.optimization_level,
        workspace_bytes=options.workspace_bytes,
        build_seconds=round(time.monotonic() - started, 1),
        vocabseg=_own_version(),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return install_plan(bundle, target.key, plan, built.data), built.explanation


def install_plan(bundle: Bundle, key: str, record: PlanRecord, data: bytes) -> Plan:
    """Put a plan with its record into a bundle's folder of engines for the target `key`; raises OutputError."""
    folder = bundle.folder / ENGINES / key
    folder.parent.mkdir(exist_ok=True)
    with whole_folder(folder, "the engines") as temporary:
        kept = [plan for plan in read_plans(folder) if _stays(bundle, plan, record)]
        for plan in kept:
            _link(plan.path, temporary / plan.record.file)
        with (temporary / record.file).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        plans = sorted([*(plan.record for plan in kept), record], key=lambda one: one.file)
        text = msgspec.json.format(msgspec.json.encode(EngineRecord(format=FORMAT, plans=plans)), indent=2)
        (temporary / RECORD).write_bytes(text + b"\n")
    return Plan(folder, record)


def timing_cache(target: PlanTarget) -> Path | None:
    """Where measurements of single layers are kept for a GPU and TensorRT, for all bundles.

    None without a cache folder, and for TensorRT for RTX, whose builder measures nothing.
    """
    folder = cache_folder()
    if folder is None or target.device is None:
        return None
    return folder / "tensorrt" / f"{target.key}-{target.package.info.version}.timings"


def _stays(bundle: Bundle, plan: Plan, added: PlanRecord) -> bool:
    record = plan.record
    if (record.graph, record.precision) == (added.graph, added.precision) or not plan.path.is_file():
        return False
    graphs = bundle.manifest.graphs_in(plan_variant(record.precision))
    current = graphs.get(record.graph)
    return current is not None and current.digest() == record.graph_digest


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _own_version() -> str:
    try:
        return version("vocabseg")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
