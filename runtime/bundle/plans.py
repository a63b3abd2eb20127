"""Plans: engines that TensorRT built, what is on record about them, and which of them fit this machine.

They lie in `engines/<device key>/` of a bundle, with `engine.json` beside them. A plan is executable code for one GPU
and one TensorRT, so it is opened only if its record matches this machine and its bytes match the record.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import Bytes, Name, Shown, TensorRecord
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.files import decode_json, open_regular, read_regular
from vocabseg.runtime.precisions import SHORT

ENGINES = "engines"
RECORD = "engine.json"
LARGEST_RECORD = 16 << 20  # bytes; one of a few plans has some 10,000
FORMAT = 1
# A lean library of a version-compatible plan's own TensorRT, for a runtime that is newer than the plan.
LEAN_LIBRARY = "VOCABSEG_TENSORRT_LEAN"

Compatibility = Literal["none", "same-compute-capability", "ampere-plus"]
# Variants that plans are built from, where they are not called like the precision: beside eight bits they have FP16, in
# which attention stays fused; beside float32 it would not.
BUILT_FROM = {"int8": "int8-float16", "fp8": "fp8-float16"}


def plan_variant(precision: str) -> str:
    """The variant of a bundle's graphs that plans of a precision are built from."""
    return BUILT_FROM.get(precision, precision)


# What builds and runs plans. TensorRT builds on the GPU that will run the plan; TensorRT for RTX builds for generations
# of GPUs, on any machine, and compiles the plan's kernels where it is opened.
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}


class PackageInfo(NamedTuple):
    """What runs plans here, such as ("tensorrt", "full", "11.4.0.106"): engine, kind of package, version."""

    engine: str
    kind: str
    version: str

    @property
    def title(self) -> str:
        return TITLES[self.engine]


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """The shapes of one input that a profile allows, and the one it is tuned for."""

    min: list[int]
    opt: list[int]
    max: list[int]


# Input name -> shapes.
Profile = dict[str, Range]


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One plan: the graph it was built from, on what, with what, and its file in the folder of the record.

    `tensorrt` is the version of the package `engine`. A plan of TensorRT for RTX runs on `generations` (compute
    capabilities); where it was built says nothing, so `gpu`, `compute_capability` and `driver` are empty.
    """

    graph: Name
    precision: Name
    graph_digest: str
    file: Shown
    bytes: Bytes
    sha256: str
    gpu: Shown
    compute_capability: tuple[int, int]
    driver: str
    engine: str = "tensorrt"
    generations: list[tuple[int, int]] = []
    tensorrt: str
    version_compatible: bool
    hardware_compatibility: Compatibility
    profiles: list[Profile]
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    flags: list[str]
    optimization_level: int
    workspace_bytes: int | None
    build_seconds: float
    vocabseg: str
    date: str


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`engine.json`: the plans of one folder."""

    format: int
    plans: list[PlanRecord]


class Plan(msgspec.Struct, frozen=True):
    """A plan on disk."""

    folder: Path
    record: PlanRecord

    @property
    def path(self) -> Path:
        return self.folder / self.record.file

    @property
    def name(self) -> str:
        """As messages name it."""
        return f"{ENGINES}/{self.folder.name}/{self.record.file}"


def read_plans(folder: Path) -> list[Plan]:
    """The plans on record in one folder of engines; empty where there is no record.

    Raises EngineError for a record that cannot be read, is newer than this version, or names files elsewhere.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return []
    try:
        record = decode_json(read_regular(path, LARGEST_RECORD), EngineRecord)
    except ValueError as error:
        raise EngineError(f"{path} is no valid engine record ({error}): delete {folder} and build again") from None
    if record.format != FORMAT:
        raise EngineError(f"{path} has format {record.format}, this vocabseg reads {FORMAT}: build again")
    for plan in record.plans:
        if Path(plan.file).name != plan.file or plan.file in ("", ".", ".."):
            raise EngineError(f"{path} names the file {plan.file!r}, which lies outside its folder: do not use it")
    return [Plan(folder, plan) for plan in record.plans]


def find_plan(bundle: Bundle, graph: str, precision: str, device: Any, package: PackageInfo) -> Plan:
    """The plan of a graph that fits `device` and the `package` installed; those in the device's own folder come first.

    Raises EngineError that says what differs in the nearest one, and the command that builds one.
    """
    command = build_command(bundle, precision, engine=package.engine)
    engines = bundle.folder / ENGINES
    folders = sorted(path for path in engines.iterdir() if _inside(path, bundle.folder)) if engines.is_dir() else []
    folders.sort(key=lambda path: path.name != device.key)
    plans = [plan for folder in folders for plan in read_plans(folder)]
    key = (package.engine, graph, precision)
    wanted = [plan for plan in plans if (plan.record.engine, plan.record.graph, plan.record.precision) == key]
    if not wanted:
        raise EngineError(f"{bundle.folder} has no {package.title} plan of {graph} in {precision}: run `{command}`")
    digest = bundle.graph(graph, plan_variant(precision)).digest()
    reasons = [differences(plan.record, digest, device, package) for plan in wanted]
    for plan, reason in zip(wanted, reasons, strict=True):
        if not reason:
            return plan
    nearest, reason = min(zip(wanted, reasons, strict=True), key=lambda pair: len(pair[1]))
    raise EngineError(f"{nearest.name} does not fit here: {'; '.join(reason)}: run `{command}`")


def differences(record: PlanRecord, graph_digest: str, device: Any, package: PackageInfo) -> list[str]:
    """What keeps a plan from running here, one short text each; empty where nothing does.

    Rules of NVIDIA's page "Engine Compatibility" (TensorRT 11.1): without compatibility flags a plan runs on the GPU
    model and the TensorRT that built it. A plan of TensorRT for RTX runs on the generations it was built for, with the
    version that built it.
    """
    found = []
    if record.graph_digest != graph_digest:
        found.append(f"the {record.precision} graph of {record.graph} has changed since it was built")
    here, there = tuple(device.compute_capability), record.compute_capability
    if record.engine == "tensorrt-rtx":
        if here not in record.generations:
            known = ", ".join(map(_dots, record.generations))
            found.append(f"it is for compute capability {known}, {device.name} has {_dots(here)}")
    elif record.hardware_compatibility == "none":
        if (record.gpu, tuple(there)) != (device.name, here):
            found.append(f"it was built on {record.gpu} ({_dots(there)}), this is {device.name} ({_dots(here)})")
    elif record.hardware_compatibility == "same-compute-capability":
        if there != here:
            found.append(f"it is for compute capability {_dots(there)}, {device.name} has {_dots(here)}")
    elif tuple(here) < (8, 0):
        found.append(f"it is for Ampere (8.0) and newer, {device.name} has {_dots(here)}")
    return found + _version_differences(record, package)


def _version_differences(record: PlanRecord, package: PackageInfo) -> list[str]:
    if not record.version_compatible:
        if package.kind != "full":
            return [f"TensorRT's {package.kind} runtime needs a plan that was built with --version-compatible"]
        if record.tensorrt != package.version:
            return [f"it was built with {package.title} {record.tensorrt}, installed is {package.version}"]
        return []
    if version_numbers(package.version) < version_numbers(record.tensorrt):
        return [f"it was built with TensorRT {record.tensorrt}, which is newer than {package.version} here"]
    # Our plans never carry a lean runtime of their own, since that would be code out of a file.
    if (record.tensorrt != package.version or package.kind == "dispatch") and lean_library() is None:
        return [
            f"TensorRT {package.version} ({package.kind}) needs the lean library of TensorRT {record.tensorrt} for it: "
            f"name it in {LEAN_LIBRARY}"
        ]
    return []


def lean_library() -> Path | None:
    """The lean library that the user names for plans of an older TensorRT; raises EngineError where it is not there."""
    name = os.environ.get(LEAN_LIBRARY)
    if not name:
        return None
    if not Path(name).is_file():
        raise EngineError(f"{LEAN_LIBRARY} is {name!r}, and there is no such file: name libnvinfer_lean.so.NN")
    return Path(name)


def _inside(folder: Path, bundle: Path) -> bool:
    """Whether a path is a folder of the bundle, not only linked to."""
    return folder.is_dir() and folder.resolve().is_relative_to(bundle.resolve())


def load_plan(plan: Plan, command: str) -> bytes:
    """The bytes of a plan, checked against its record.

    Raises EngineError for a missing, cut or changed file, and for one that is a link or no regular file.
    """
    record = plan.record
    if plan.path.is_symlink():
        raise EngineError(f"{plan.name} is a link: do not use it, or copy the file there")
    try:
        with open_regular(plan.path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(record.bytes) if size == record.bytes else b""
    except OSError as error:
        raise EngineError(
            f"{plan.name} cannot be read ({(error.strerror or str(error)).lower()}): run `{command}`"
        ) from None
    if size != record.bytes:
        what = "is cut short" if size < record.bytes else "is too long"
        raise EngineError(f"{plan.name} {what}: {size} bytes, its record says {record.bytes}: run `{command}`")
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise EngineError(
            f"{plan.name} does not match its SHA-256 on record: it was changed or damaged: run `{command}`"
        )
    return data


def build_command(bundle: Bundle, precision: str, options: Sequence[str] = (), engine: str = "tensorrt") -> str:
    """The command that builds the plans of a bundle in a precision."""
    chosen = [] if engine == "tensorrt" else ["--engine", engine]
    words = ["vocabseg build", str(bundle.folder), "--precision", SHORT.get(precision, precision), *chosen, *options]
    return " ".join(words)


def profile_options(graph: str, profiles: Sequence[Profile], inputs: Sequence[TensorRecord]) -> list[str]:
    """The `--profile` options that give these profiles again, in the short form: dynamic dimensions only."""
    options = []
    for profile in profiles:
        name = next((record.name for record in inputs if record.name in profile), next(iter(profile)))
        shape = next((record.shape for record in inputs if record.name == name), None)
        sizes = [_dynamic(part, shape) for part in (profile[name].min, profile[name].opt, profile[name].max)]
        options += ["--profile", f"{graph}:{name}={','.join(sizes)}"]
    return options


def _dynamic(sizes: Sequence[int], shape: Sequence[int | str] | None) -> str:
    kept = sizes if shape is None else [size for size, part in zip(sizes, shape, strict=True) if isinstance(part, str)]
    return "x".join(map(str, kept))


def version_numbers(text: str) -> tuple[int, ...]:
    """(11, 4, 0, 106) of "11.4.0.106"; parts that are no numbers are left out."""
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def _dots(capability: Sequence[int]) -> str:
    return ".".join(map(str, capability))
