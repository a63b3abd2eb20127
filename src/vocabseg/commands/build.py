"""`vocabseg build`: a bundle in; its graphs in a lower precision, and TensorRT plans for this machine's GPU, out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from vocabseg.commands.options import Quiet
from vocabseg.commands.packages import require
from vocabseg.commands.terminal import progress
from vocabseg.runtime.bundle.settings import nearest
from vocabseg.runtime.errors import BundleError, ConfigurationError, EngineError
from vocabseg.runtime.progress import Progress

if TYPE_CHECKING:
    from vocabseg.export.tensorrt.builder import BuildOptions
    from vocabseg.runtime.bundle.folder import Bundle
    from vocabseg.runtime.bundle.manifest import GraphRecord
    from vocabseg.runtime.bundle.plans import Profile
    from vocabseg.runtime.cuda.device import Device

HELP = "Make a bundle's FP16 graphs, and where TensorRT is installed its engines for this machine's GPU."
EXAMPLE = (
    "Example: vocabseg build my-bundle --precision fp16\n\n"
    "Larger batches: vocabseg build my-bundle --profile image_encoder:crops=1,200,400\n\n"
    "See what would be built: vocabseg build my-bundle --dry-run"
)
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "fp8"}
COMPATIBILITIES = ("none", "same-compute-capability", "ampere-plus")


class Builder(NamedTuple):
    """What plans can be built with here: a GPU, or the reason why there is no GPU or no TensorRT."""

    device: "Device | None"
    text: str


def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, into which everything is written.")],
    precision: Annotated[str, typer.Option(help="fp16, fp32, or int8 or fp8 after `vocabseg calibrate`.")] = "fp16",
    profiles: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="GRAPH:INPUT=MIN,OPT,MAX",
            help="Sizes a graph is built for, such as image_encoder:crops=1,64,128; more than once for several.",
        ),
    ] = None,
    graphs: Annotated[str, typer.Option("--graphs", help="Only these graphs' engines, separated by commas.")] = "",
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="What stays in float32 (a TOML file). Default: the package's own.")
    ] = None,
    level: Annotated[int, typer.Option("--level", help="How long TensorRT searches: 0 (least) to 5.")] = 3,
    workspace: Annotated[
        float | None, typer.Option("--workspace", help="Memory a layer may use, in GB. Default: no limit.")
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", "--lean", help="Engines that TensorRT's lean runtime opens; they can be slower."
        ),
    ] = False,
    hardware: Annotated[
        str, typer.Option("--hardware-compatible", help="Other GPUs that may run it: " + ", ".join(COMPATIBILITIES))
    ] = "none",
    device: Annotated[str, typer.Option("--device", help="The GPU to build on: cuda or cuda:N.")] = "cuda",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be built, and stop.")] = False,
    quiet: Quiet = False,
) -> None:
    require(("onnx", "onnx_ir"), "building", "build")
    from vocabseg.export.tensorrt.profiles import choose_profiles
    from vocabseg.runtime.bundle.folder import open_bundle

    wanted = _precision(precision)
    options = _options(level, workspace, version_compatible, hardware)
    opened = open_bundle(bundle)
    records = _graphs(opened, graphs)
    sizes = choose_profiles(opened.manifest, records, profiles or [])
    if wanted not in ("float16", "float32"):
        for name in records:
            opened.graph(name, wanted)  # raises with the command that makes them
    builder = _builder(device)
    if dry_run:
        _show(opened, wanted, records, sizes, options, builder)
        return
    with progress(quiet) as report:
        if wanted == "float16":
            opened = _half_graphs(opened, recipe, report, quiet)
        elif recipe is not None:
            raise ConfigurationError(f"--recipe goes with --precision fp16, not with {precision}")
        _check(opened, wanted, records)
        if builder.device is not None:
            _engines(opened, wanted, sizes, options, builder.device, report)
    if builder.device is None:
        print(f"No TensorRT engines were built: {builder.text}", file=sys.stderr)
        if wanted == "float16":
            print("The FP16 graphs are in the bundle, ready for ONNX Runtime on a GPU.", file=sys.stderr)
    print(opened.folder)


def _precision(text: str) -> str:
    name = PRECISIONS.get(text.lower(), text.lower())
    if name not in PRECISIONS.values():
        raise ConfigurationError(f"--precision {text!r} is unknown: {nearest(text, PRECISIONS)}")
    return name


def _options(level: int, workspace: float | None, version_compatible: bool, hardware: str) -> "BuildOptions":
    import msgspec

    from vocabseg.export.tensorrt.builder import BuildOptions

    if hardware not in COMPATIBILITIES:
        raise ConfigurationError(f"--hardware-compatible {hardware!r} is unknown: {nearest(hardware, COMPATIBILITIES)}")
    values = {
        "optimization_level": level,
        "workspace_bytes": None if workspace is None else int(workspace * 1e9),
        "version_compatible": version_compatible,
        "hardware_compatibility": hardware,
    }
    options = msgspec.convert(values, BuildOptions)
    options.check()
    return options


def _graphs(bundle: "Bundle", text: str) -> "dict[str, GraphRecord]":
    known = bundle.manifest.graphs
    names = [name.strip() for name in text.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise ConfigurationError(f"--graphs {name!r}: the bundle has no such graph; {nearest(name, known)}")
    return {name: known[name] for name in names}


def _builder(text: str) -> Builder:
    from vocabseg.runtime.cuda.device import open_device, parse_device
    from vocabseg.runtime.engines.tensorrt.package import require_builder

    ordinal = parse_device(text)
    try:
        package = require_builder()
        device = open_device(ordinal)
    except EngineError as error:
        return Builder(None, str(error))
    return Builder(device, f"TensorRT {package.version} on {device.name} ({device.key})")


def _half_graphs(bundle: "Bundle", recipe: Path | None, report: Progress, quiet: bool) -> "Bundle":
    """The bundle with FP16 graphs of its float32 ones."""
    from vocabseg.export.half.convert import add_half_graphs, stale_half
    from vocabseg.export.half.recipe import read_recipe

    given = None if recipe is None else read_recipe(recipe)
    if given is None and not stale_half(bundle, bundle.manifest.graphs):
        if not quiet:
            print("The bundle has its FP16 graphs already; --recipe FILE makes them anew.", file=sys.stderr)
        return bundle
    made = add_half_graphs(bundle, given, report)
    if not quiet:
        for name, record in made.manifest.graphs_in("float16").items():
            print(f"  {record.file:<36} {record.total_bytes / 1e6:7.1f} MB  {_kept(name, record)}", file=sys.stderr)
    return made


def _kept(name: str, record: "GraphRecord") -> str:
    nodes = record.provenance.get("nodes", {})
    return f"{nodes.get('float32', 0)} operations stay in float32, {nodes.get('float16', 0)} are in FP16"


def _check(bundle: "Bundle", precision: str, records: "dict[str, GraphRecord]") -> None:
    """Every operator is one that TensorRT's parser takes, whether or not it is installed here."""
    from vocabseg.export.tensorrt.operators import check_operators

    problems = [line for name in records for line in check_operators(bundle.graph_path(name, precision))]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BundleError(f"TensorRT cannot take the graphs of {bundle.folder}: {problems[0]}{more}")


def _engines(
    bundle: "Bundle",
    precision: str,
    sizes: "dict[str, list[Profile]]",
    options: "BuildOptions",
    device: "Device",
    report: Progress,
) -> None:
    from vocabseg.export.tensorrt.installer import build_engine

    for name, profiles in sizes.items():
        plan = build_engine(bundle, name, precision, profiles, options, device, report)
        seconds, size = plan.record.build_seconds, plan.record.bytes / 1e6
        print(f"  {plan.name:<60} {size:7.1f} MB  built in {seconds:.0f} s", file=sys.stderr)


def _show(
    bundle: "Bundle",
    precision: str,
    records: "dict[str, GraphRecord]",
    sizes: "dict[str, list[Profile]]",
    options: "BuildOptions",
    builder: Builder,
) -> None:
    """What would be done, on standard output: it is what a dry run is for."""
    from vocabseg.export.half.convert import stale_half
    from vocabseg.export.tensorrt.profiles import describe_profiles
    from vocabseg.runtime.bundle.plans import ENGINES

    made = stale_half(bundle, records) if precision == "float16" else []
    print(f"FP16 graphs to make: {', '.join(made) or 'none'}")
    where = builder.device.key if builder.device else "<device>"
    for name, profiles in sizes.items():
        print(f"{ENGINES}/{where}/{name}-{precision}.plan")
        for line in describe_profiles(profiles):
            print(f"    {line}")
    flags = ["version-compatible"] if options.version_compatible else []
    flags += [] if options.hardware_compatibility == "none" else [options.hardware_compatibility]
    print(f"Level {options.optimization_level}, {', '.join(flags) or 'for this GPU and TensorRT alone'}")
    print(f"With {builder.text}" if builder.device else f"No engines can be built here: {builder.text}")
