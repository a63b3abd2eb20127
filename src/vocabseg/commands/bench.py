"""`vocabseg bench`: a bundle in; its speed, memory and parity as tables, figures and one page to look at out."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import (
    BundleArgument,
    Device,
    Engine,
    Quiet,
    Settings,
    Target,
    precision_names,
    two_stage,
    vocabulary_of,
)
from vocabseg.commands.packages import require
from vocabseg.commands.terminal import FAILED, announcer, progress
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.progress import counted

if TYPE_CHECKING:
    from vocabseg.benchmarks.speed.selection import Benchmark

HELP = "Measure a bundle: latency of every stage against this machine's peak, throughput, memory, and parity."
EXAMPLE = (
    "Example: vocabseg bench my-bundle --against torch-eager,onnxruntime --checkpoint model_final.pth\n\n"
    "Two reports side by side: vocabseg bench --compare old/bench.json new/bench.json\n\n"
    "Exit code 3: the parity contract is broken, and the first stage beyond its tolerance is named; or --compare found "
    "a figure slower than --fail-above allows.\n\n"
    "Exit code 4: something that was asked for could not be measured; the report holds the rest."
)
# Of a run that went well and was incomplete.
INCOMPLETE = 4


def bench(
    bundle: BundleArgument = None,
    against: Annotated[
        str,
        typer.Option(
            help="Others to measure: torch-eager, torch-compile, onnxruntime, openvino, tensorrt; on a CPU also held "
            "to one thread (openvino@1-thread) or kept from AMX (openvino@no-amx)."
        ),
    ] = "",
    images: Annotated[
        Path | None, typer.Option("--images", help="A folder of images. Default: a photo and rendered scenes.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many of the images.")] = 8,
    classes: Annotated[
        str | None, typer.Option("--classes", "-c", help="Names, or @FILE. Default: the bundle's, else VOC's 20.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="Some of float32, bfloat16, float16, int8, fp8, separated by commas. "
            "Default: what `segment` uses, and float32."
        ),
    ] = "",
    engine: Engine = None,
    device: Device = "auto",
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The bundle's PyTorch weights, for parity with the reference.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="The checkpoint's configuration. Default: what the bundle records.")
    ] = None,
    clip: Annotated[str | None, typer.Option("--clip", help="Other CLIP for the regions, as for export.")] = None,
    settings: Settings = None,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds over all images.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Begin no further run after so many seconds of them.")] = 120,
    batches: Annotated[str, typer.Option(help="Batch sizes to measure, separated by commas.")] = "1,4",
    scenes: Annotated[int, typer.Option(min=0, help="Labelled scenes for mIoU (demo model only).")] = 40,
    cold: Annotated[int, typer.Option(min=0, help="Fresh processes to start, per variant.")] = 3,
    output: Annotated[Path, typer.Option("--output", "-o", help="The report's folder.")] = Path("bench-report"),
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare", metavar="OLD NEW", help="Compare two reports (bench.json) and stop.", show_default=False
        ),
    ] = None,
    fail_above: Annotated[
        str | None,
        typer.Option("--fail-above", help="With --compare: exit code 3 if a figure is slower by more, such as 10%."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    if compare is not None:
        _compare(*compare, None if fail_above is None else _percent(fail_above))
        return
    if fail_above is not None:
        raise ConfigurationError("--fail-above goes with --compare OLD NEW")
    from vocabseg.benchmarks.page.output import print_report, write_report
    from vocabseg.benchmarks.page.tables import verdict
    from vocabseg.benchmarks.speed.run import run_benchmark
    from vocabseg.benchmarks.speed.selection import (
        Effort,
        default_images,
        default_vocabulary,
        find_weights,
        images_in,
        make_benchmark,
    )
    from vocabseg.runtime.files import check_folder, make_folder

    # Everything is looked at before anything is measured.
    effort = Effort(repeat, seconds, _batches(batches), scenes, cold)
    require(("onnx",), "counting the graphs' operations", "benchmarks")
    check_folder(output)
    if checkpoint is None and (config is not None or clip is not None):
        raise ConfigurationError("--config and --clip go with --checkpoint")
    overrides = settings or []
    opened = two_stage(Target(bundle, settings=overrides).opened, "bench")
    opened.require_proposals()
    with tempfile.TemporaryDirectory(prefix="vocabseg-bench-") as scratch:
        benchmark = make_benchmark(
            opened,
            default_vocabulary(opened) if classes is None else vocabulary_of(classes),
            default_images(Path(scratch))[:limit] if images is None else images_in(images, limit),
            find_weights(opened, checkpoint, config, clip, overrides),
            engine, _list(against), precision_names(precision), overrides, effort, device,
        )  # fmt: skip
        make_folder(output)
        _announce(benchmark, output, announcer(quiet))
        with progress(quiet) as report:
            outcome = run_benchmark(benchmark, report)
        files = write_report(outcome, output)
    if not quiet:
        from rich.console import Console

        print_report(outcome.report, Console(stderr=True))
    announcer(quiet)(verdict(outcome.report))
    for path in files:
        print(path)
    for name, stage in outcome.report.broken:
        print(f"vocabseg: parity is broken: {name} leaves its tolerance first in {stage}", file=sys.stderr)
    missing = {one.name for one in benchmark.missing} - {one.name for one in benchmark.unmet}
    incomplete = [one for one in outcome.report.variants if one.reason is not None and one.name not in missing]
    for one in incomplete:
        print(f"vocabseg: asked for and not measured: {one.name}: {one.reason}", file=sys.stderr)
    if outcome.report.broken or incomplete:
        raise typer.Exit(FAILED if outcome.report.broken else INCOMPLETE)


def _announce(benchmark: "Benchmark", output: Path, say: Callable[[str], None]) -> None:
    names = ", ".join(spec.name for spec in benchmark.variants)
    say(
        f"Measuring {benchmark.bundle.manifest.name} on {counted(len(benchmark.images), 'image')}, "
        f"{counted(len(benchmark.vocabulary), 'class')}, with {names}; the report goes to {output}"
    )
    say(f"Parity is measured against {benchmark.oracle_reason}")
    for missing in benchmark.missing:
        say(f"Not measured: {missing.name}: {missing.reason}")


def _compare(old: Path, new: Path, percent: float | None) -> None:
    from rich.console import Console

    from vocabseg.benchmarks.page.compare import compare, compare_table, slower_than
    from vocabseg.benchmarks.page.output import print_tables
    from vocabseg.benchmarks.speed.results import read_report

    reports = read_report(old), read_report(new)
    table = compare_table(*reports)
    if not table.rows:
        raise ConfigurationError(f"{old} and {new} have no variant in common: nothing can be compared")
    print_tables([table], Console())
    slower = [] if percent is None else slower_than(compare(*reports), percent)
    for one in slower:
        share = f"{100 * (one.ratio - 1):.1f} %"
        print(f"vocabseg: {one.variant}, {one.what}: {share} slower, {percent:g} % are allowed", file=sys.stderr)
    if slower:
        raise typer.Exit(FAILED)


def _percent(text: str) -> float:
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent < float("inf"):
        raise ConfigurationError(f"--fail-above {text!r}: give a percentage, such as 10%")
    return percent


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _batches(text: str) -> tuple[int, ...]:
    parts = _list(text)
    if any(not part.isdecimal() or int(part) < 1 for part in parts):
        raise ConfigurationError(f"--batches {text!r}: give whole numbers from 1 on, such as 1,4")
    return tuple(int(part) for part in parts)
