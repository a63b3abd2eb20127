"""`vocabseg build`: a bundle in; its graphs in a lower precision, and plans of TensorRT or TensorRT for RTX, out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import Quiet, two_stage
from vocabseg.commands.packages import require
from vocabseg.commands.terminal import print_rows, progress
from vocabseg.runtime.bundle.settings import nearest
from vocabseg.runtime.errors import BundleError, ConfigurationError, EngineError
from vocabseg.runtime.precisions import LONG
from vocabseg.runtime.progress import Progress

if TYPE_CHECKING:
    from vocabseg.export.tensorrt.builder import BuildOptions
    from vocabseg.export.tensorrt.explain_report import ExplainedPlan
    from vocabseg.export.tensorrt.target import PlanTarget
    from vocabseg.runtime.bundle.folder import Bundle
    from vocabseg.runtime.bundle.manifest import GraphRecord
    from vocabseg.runtime.bundle.plans import Profile

HELP = "Make a bundle's graphs in a lower precision, and its engines with TensorRT or TensorRT for RTX."
EXAMPLE = (
    "Example: vocabseg build my-bundle --precision fp16\n\n"
    "Without a GPU: vocabseg build my-bundle --engine tensorrt-rtx --gpus sm86,sm89,sm120\n\n"
    "See what was built: vocabseg build my-bundle --explain\n\n"
    "Larger batches: vocabseg build my-bundle --profile image_encoder:crops=1,200,400\n\n"
    "See what would be built: vocabseg build my-bundle --dry-run"
)
PRECISIONS = {**LONG, "int8": "int8", "fp8": "fp8"}
# Precisions whose graphs this command makes, as people write them.
MAKERS = {"float16": "FP16", "bfloat16": "bfloat16", "int8": "INT8", "fp8": "FP8"}
COMPATIBILITIES = ("none", "same-compute-capability", "ampere-plus")


def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, into which everything is written.")],
    precision: Annotated[str, typer.Option(help="fp16, bf16, fp32, or after `vocabseg calibrate` int8, fp8.")] = "fp16",
    engine: Annotated[
        str, typer.Option("--engine", help="tensorrt, or tensorrt-rtx, which needs no GPU to build.")
    ] = "tensorrt",
    gpus: Annotated[
        str,
        typer.Option(
            "--gpus",
            help="GPU generations that tensorrt-rtx builds for, separated by commas. Default: sm80,sm86,sm89,sm120.",
        ),
    ] = "",
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
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each kernel that the builder chose, its types and its layers.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="A folder for the same as JSON, with a picture (PNG).")
    ] = None,
    quiet: Quiet = False,
) -> None:
    require(("onnx", "onnx_ir"), "building", "build")
    from vocabseg.export.tensorrt.profiles import choose_profiles
    from vocabseg.export.tensorrt.target import open_target
    from vocabseg.runtime.bundle.folder import open_bundle
    from vocabseg.runtime.bundle.plans import BUILT_FROM
    from vocabseg.runtime.cuda.device import parse_device
    from vocabseg.runtime.files import make_folder

    wanted = _precision(precision)
    options = _options(engine, level, workspace, version_compatible, hardware)
    generations = _generations(engine, wanted, gpus)
    if device == "cpu":
        raise ConfigurationError("--device cpu: plans are built on a GPU: cuda or cuda:N; tensorrt-rtx needs none")
    ordinal = parse_device(device)
    opened = two_stage(open_bundle(bundle), "build")
    records = _graphs(opened, graphs)
    sizes = choose_profiles(opened.manifest, records, profiles or [])
    if recipe is not None and wanted not in MAKERS:
        raise ConfigurationError(f"--recipe says what stays in float32; --precision {precision} leaves all in it")
    if wanted in BUILT_FROM:
        for name in opened.manifest.graphs:
            opened.graph(name, wanted)  # raises with the command that makes them
    try:
        target, missing = open_target(engine, ordinal, generations), ""
    except EngineError as error:
        target, missing = None, str(error)
    if dry_run:
        _show(opened, wanted, records, sizes, options, target, missing)
        return
    if report is not None:
        require(("matplotlib",), "the picture of --report", "benchmarks")
        make_folder(report)
    with progress(quiet) as show:
        if wanted in MAKERS:
            opened = _low_graphs(opened, wanted, recipe, show, quiet)
        _check(opened, wanted, records)
        plans = [] if target is None else _engines(opened, wanted, sizes, options, target, show)
    if plans and report is not None:
        _write(plans, report)
    if plans and not quiet:
        _tell(plans, explain, target)
    if target is None:
        print(f"No engines were built: {missing}", file=sys.stderr)
        if wanted == "float16":
            print("The FP16 graphs are in the bundle, ready for ONNX Runtime on a GPU.", file=sys.stderr)
    print(opened.folder)


def _precision(text: str) -> str:
    name = PRECISIONS.get(text.lower(), text.lower())
    if name not in PRECISIONS.values():
        raise ConfigurationError(f"--precision {text!r} is unknown: {nearest(text, PRECISIONS)}")
    return name


def _generations(engine: str, precision: str, gpus: str) -> tuple[str, ...]:
    from vocabseg.export.tensorrt.target import choose_generations

    return choose_generations(engine, precision, [name.strip().lower() for name in gpus.split(",") if name.strip()])


def _options(
    engine: str, level: int, workspace: float | None, version_compatible: bool, hardware: str
) -> "BuildOptions":
    import msgspec

    from vocabseg.export.tensorrt.builder import BuildOptions
    from vocabseg.runtime.bundle.plans import TITLES

    if engine not in TITLES:
        raise ConfigurationError(f"--engine {engine!r} is unknown: {nearest(engine, TITLES)}")
    if hardware not in COMPATIBILITIES:
        raise ConfigurationError(f"--hardware-compatible {hardware!r} is unknown: {nearest(hardware, COMPATIBILITIES)}")
    values = {
        "optimization_level": level,
        "workspace_bytes": None if workspace is None else int(workspace * 1e9),
        "version_compatible": version_compatible,
        "hardware_compatibility": hardware,
    }
    options = msgspec.convert(values, BuildOptions)
    options.check(engine)
    return options


def _graphs(bundle: "Bundle", text: str) -> "dict[str, GraphRecord]":
    known = bundle.manifest.graphs
    names = [name.strip() for name in text.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise ConfigurationError(f"--graphs {name!r}: the bundle has no such graph; {nearest(name, known)}")
    return {name: known[name] for name in names}


def _low_graphs(bundle: "Bundle", precision: str, recipe: Path | None, show: Progress, quiet: bool) -> "Bundle":
    """The bundle with graphs of `precision`, made of its float32 ones."""
    from vocabseg.export.half.convert import add_half_graphs, add_plan_graphs, stale_graphs
    from vocabseg.export.half.recipe import read_recipe
    from vocabseg.runtime.bundle.plans import plan_variant

    given = None if recipe is None else read_recipe(recipe)
    low = "bfloat16" if precision == "bfloat16" else "float16"
    if given is not None and given.precision != low:
        raise ConfigurationError(f"{recipe} is a recipe for {given.precision}; {MAKERS[precision]} needs one for {low}")
    title = MAKERS[precision]
    if given is None and not stale_graphs(bundle, bundle.manifest.graphs, precision):
        if not quiet:
            print(f"The bundle has its {title} graphs already; --recipe FILE makes them anew.", file=sys.stderr)
        return bundle
    if precision == "float16":
        made = add_half_graphs(bundle, given, show)
    else:
        made = add_plan_graphs(bundle, precision, given, show)
    if not quiet:
        for record in made.manifest.graphs_in(plan_variant(precision)).values():
            nodes = record.provenance.get("nodes", {})
            count = f"{nodes.get(low, 0)} are in {MAKERS[low]}"
            kept = f"{nodes.get('float32', 0)} operations stay in float32, {count}"
            print(f"  {record.file:<36} {record.total_bytes / 1e6:7.1f} MB  {kept}", file=sys.stderr)
    return made


def _check(bundle: "Bundle", precision: str, records: "dict[str, GraphRecord]") -> None:
    """Every operator is one that TensorRT's parser takes, whether or not it is installed here."""
    from vocabseg.export.tensorrt.operators import check_operators
    from vocabseg.runtime.bundle.plans import plan_variant

    variant = plan_variant(precision)
    problems = [line for name in records for line in check_operators(bundle.graph_path(name, variant))]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BundleError(f"TensorRT cannot take the graphs of {bundle.folder}: {problems[0]}{more}")


def _engines(
    bundle: "Bundle",
    precision: str,
    sizes: "dict[str, list[Profile]]",
    options: "BuildOptions",
    target: "PlanTarget",
    show: Progress,
) -> "list[ExplainedPlan]":
    from vocabseg.export.graph.layers import layers
    from vocabseg.export.tensorrt.explain_report import ExplainedPlan
    from vocabseg.export.tensorrt.installer import build_engine
    from vocabseg.runtime.bundle.plans import plan_variant

    plans = []
    for name, profiles in sizes.items():
        plan, said = build_engine(bundle, name, precision, profiles, options, target, show)
        plans.append(ExplainedPlan(plan, said, layers(bundle.graph_path(name, plan_variant(precision)))))
    return plans


def _tell(plans: "list[ExplainedPlan]", explain: bool, target: "PlanTarget | None") -> None:
    """A row for each plan on standard error; with `explain` each one's kernels on standard output."""
    from vocabseg.export.tensorrt.explain_report import LAYERS, SUMMARY

    for one in plans if explain else ():
        print_rows(f"{one.title}: kernels in the order in which they run", LAYERS, one.rows(), sys.stdout)
    print_rows(f"With {target.text}" if target else "", SUMMARY, [one.summary() for one in plans], sys.stderr)
    for one in plans:
        print(f"  {one.plan.name}", file=sys.stderr)


def _write(plans: "list[ExplainedPlan]", folder: Path) -> None:
    from vocabseg.export.tensorrt.explain_report import draw, write_json

    write_json(plans, folder / "plans.json")
    draw(plans, folder / "plans.png")
    print(f"What was built: {folder / 'plans.json'} and {folder / 'plans.png'}", file=sys.stderr)


def _show(
    bundle: "Bundle",
    precision: str,
    records: "dict[str, GraphRecord]",
    sizes: "dict[str, list[Profile]]",
    options: "BuildOptions",
    target: "PlanTarget | None",
    missing: str,
) -> None:
    """What would be done, on standard output: it is what a dry run is for."""
    from vocabseg.export.half.convert import stale_graphs
    from vocabseg.export.tensorrt.profiles import describe_profiles
    from vocabseg.runtime.bundle.plans import ENGINES

    if precision in MAKERS:
        made = stale_graphs(bundle, records, precision)
        print(f"{MAKERS[precision]} graphs to make: {', '.join(made) or 'none'}")
    for name, profiles in sizes.items():
        print(f"{ENGINES}/{target.key if target else '<device>'}/{name}-{precision}.plan")
        for line in describe_profiles(profiles):
            print(f"    {line}")
    flags = ["version-compatible"] if options.version_compatible else []
    flags += [] if options.hardware_compatibility == "none" else [options.hardware_compatibility]
    if target is not None and target.device is None:
        flags = [f"for {', '.join(target.generations)} and this version alone"]
    print(f"Level {options.optimization_level}, {', '.join(flags) or 'for this GPU and TensorRT alone'}")
    print(f"With {target.text}" if target else f"No engines can be built here: {missing}")
