"""`vocabseg bench`: a bundle in; its speed, memory and parity as tables, figures and one page to look at out."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import Quiet, Settings
from vocabseg.commands.terminal import progress
from vocabseg.runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from vocabseg.benchmarks.speed.selection import Budget, Plan

HELP = "Measure a bundle: latency of every stage against this machine's peak, throughput, memory, and parity."
EXAMPLE = (
    "Example: vocabseg bench my-bundle --against torch-eager,onnxruntime --checkpoint model_final.pth\n\n"
    "Two reports side by side: vocabseg bench --compare old/bench.json new/bench.json\n\n"
    "Exit code 3: the parity contract is broken; the first stage beyond its tolerance is named."
)
# Of a run that went well and found a broken contract; 1 is a fault of vocabseg, 2 input that cannot be used.
BROKEN = 3


def bench(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle's folder; without it, the built-in demo model.", show_default=False),
    ] = None,
    against: Annotated[
        str, typer.Option(help="Others to measure: torch-eager, torch-compile, onnxruntime, openvino, tensorrt.")
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
            help="Some of float32, bfloat16, float16, separated by commas. Default: what `segment` uses, and float32."
        ),
    ] = "",
    engine: Annotated[
        str | None, typer.Option(help="openvino, onnxruntime or tensorrt; default: the fastest here.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
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
    quiet: Quiet = False,
) -> None:
    if compare is not None:
        _compare(*compare)
        return
    from vocabseg.benchmarks.page.report import check_folder, print_report, write_report
    from vocabseg.benchmarks.speed.run import run_benchmark
    from vocabseg.benchmarks.speed.selection import Budget

    budget = Budget(repeat, seconds, _batches(batches), scenes, cold)
    with tempfile.TemporaryDirectory(prefix="vocabseg-bench-") as scratch:
        plan = _plan(
            bundle, images, limit, classes, engine, _list(against), _list(precision), checkpoint, config,
            clip, settings or [], budget, Path(scratch), device,
        )  # fmt: skip
        check_folder(output)
        if not quiet:
            _announce(plan, output)
        with progress(quiet) as report:
            outcome = run_benchmark(plan, report)
        files = write_report(outcome, output)
    if not quiet:
        from rich.console import Console

        print_report(outcome.report, Console(stderr=True))
    for path in files:
        print(path)
    for name, stage in outcome.report.broken:
        print(f"vocabseg: parity is broken: {name} leaves its tolerance first in {stage}", file=sys.stderr)
    if outcome.report.broken:
        raise typer.Exit(BROKEN)


def _plan(
    bundle: Path | None,
    images: Path | None,
    limit: int,
    classes: str | None,
    engine: str | None,
    against: list[str],
    precisions: list[str],
    checkpoint: Path | None,
    config: str | None,
    clip: str | None,
    settings: list[str],
    budget: "Budget",
    scratch: Path,
    device: str,
) -> "Plan":
    """Everything is looked at before anything is measured."""
    from vocabseg.benchmarks.speed.inputs import default_images, default_vocabulary, images_in
    from vocabseg.benchmarks.speed.pytorch import find_weights
    from vocabseg.benchmarks.speed.selection import make_plan
    from vocabseg.commands.packages import require
    from vocabseg.runtime.bundle.settings import open_adjusted
    from vocabseg.runtime.text.vocabulary import Vocabulary

    require(("onnx",), "counting the graphs' operations", "benchmarks")
    if checkpoint is None and (config is not None or clip is not None):
        raise ConfigurationError("--config and --clip go with --checkpoint")
    opened = open_adjusted(bundle, settings)
    vocabulary = default_vocabulary(opened) if classes is None else Vocabulary.of(classes)
    pictures = default_images(scratch) if images is None else images_in(images, limit)
    weights = find_weights(opened, checkpoint, config, clip, settings)
    return make_plan(opened, vocabulary, pictures, weights, engine, against, precisions, settings, budget, device)


def _announce(plan: "Plan", output: Path) -> None:
    names = ", ".join(spec.name for spec in plan.variants)
    print(
        f"Measuring {plan.bundle.manifest.name} on {len(plan.images)} images, {len(plan.vocabulary)} classes, "
        f"with {names}; the report goes to {output}",
        file=sys.stderr,
    )
    print(f"Parity is measured against {plan.oracle_reason}", file=sys.stderr)
    for missing in plan.missing:
        print(f"Not measured: {missing.name}: {missing.reason}", file=sys.stderr)


def _compare(old: Path, new: Path) -> None:
    from rich.console import Console

    from vocabseg.benchmarks.page.report import print_tables
    from vocabseg.benchmarks.speed.compare import compare_table
    from vocabseg.benchmarks.speed.results import read_report

    table = compare_table(read_report(old), read_report(new))
    if not table.rows:
        raise ConfigurationError(f"{old} and {new} have no variant in common: nothing can be compared")
    print_tables([table], Console())


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _batches(text: str) -> tuple[int, ...]:
    parts = _list(text)
    if any(not part.isdecimal() or int(part) < 1 for part in parts):
        raise ConfigurationError(f"--batches {text!r}: give whole numbers from 1 on, such as 1,4")
    return tuple(int(part) for part in parts)
