"""`vocabseg calibrate`: a bundle and images in; graphs in lower precision, and what each costs, out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import Quiet, precision_names, two_stage, vocabulary_of
from vocabseg.commands.packages import require
from vocabseg.commands.terminal import announcer, progress
from vocabseg.runtime.errors import ConfigurationError, OutputError
from vocabseg.runtime.progress import counted

if TYPE_CHECKING:
    from vocabseg.calibration.trials.accuracy_budget import AccuracyBudget
    from vocabseg.calibration.trials.precision_trials import TrialSet
    from vocabseg.runtime.bundle.folder import Bundle

HELP = "Make low-precision graphs of a bundle from its ranges on real images, and show what each precision costs."
EXAMPLE = (
    "Example: vocabseg calibrate my-bundle --images ~/photos --budget disagreement=2\n\n"
    "With labels: vocabseg calibrate my-bundle --images ~/photos --dataset ade20k-150 --data-dir ~/datasets\n\n"
    "The built-in demo model, on rendered scenes: vocabseg calibrate\n\n"
    "Fewer crops: vocabseg calibrate my-bundle --regions --images ~/photos --budget disagreement=0.2\n\n"
    "The same command again resumes a calibration that was stopped."
)
KINDS = ("float16", "int8", "fp8")
DEMO = Path("vocabseg-demo")


def calibrate(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="The bundle, which gets the graphs; default: a copy of the demo model, vocabseg-demo.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="A folder of images. Default: scenes of the demo model's world.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Images that ranges come from, 32 to 512.")] = 64,
    precision: Annotated[str, typer.Option(help="What to make, separated by commas: float16, int8, fp8.")] = ",".join(
        KINDS
    ),
    budget: Annotated[
        str | None,
        typer.Option(
            help="miou=POINTS lost at most (0.5 with labels), or disagreement=PERCENT of the pixels (else 2; with "
            "--regions 0.2)."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="A labelled data set to try the precisions on.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="The folder that holds the data sets.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="val (the default) or train.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images to try the precisions on.")] = 100,
    classes: Annotated[
        str | None, typer.Option("--classes", "-c", help="Names, or @FILE, without labels. Default: the bundle's own.")
    ] = None,
    regions: Annotated[
        bool,
        typer.Option(
            "--regions",
            help="Choose which regions share a crop or get none, with the fewest crops within the budget, instead of "
            "making graphs; --count, --precision and --seed are not used then.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Decides which images and regions are taken.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The report's folder. Default: calibration-NAME.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    require(("onnx", "onnx_ir", "onnxruntime", "matplotlib"), "calibrating", "calibration")
    from vocabseg.calibration.report.calibration_report import lines, report_files, write_report
    from vocabseg.calibration.report.region_report import region_files
    from vocabseg.calibration.samples.calibration_images import candidates, choose_images
    from vocabseg.calibration.session import Calibration
    from vocabseg.calibration.trials.accuracy_budget import parse_budget
    from vocabseg.runtime.bundle.folder import check_changeable, open_bundle
    from vocabseg.runtime.files import check_apart, check_folder, make_folder

    say = announcer(quiet)
    kinds = _kinds(precision)
    labelled = dataset is not None or images is None
    default = "disagreement=0.2" if regions and not labelled else None
    allowed = parse_budget(budget or default, labelled)
    if dataset is not None and data_dir is None:
        raise ConfigurationError(f"--data-dir is missing: give the folder that holds {dataset}")
    chosen, held = ([], []) if regions else choose_images(images, count, seed, say)
    if bundle is not None:
        check_changeable(bundle)
    opened = two_stage(open_bundle(bundle or _demo_copy(say)), "calibrate")
    opened.require_proposals()
    name, folder = opened.manifest.name, opened.folder
    report_folder = output or Path(f"calibration-{name}")
    check_folder(report_folder)
    files = region_files(report_folder) if regions else report_files(report_folder)
    check_apart(files, [] if images is None else candidates(images))
    make_folder(report_folder)
    trial_set = _trial_set(opened, images, dataset, data_dir, split, limit, classes, report_folder, say)
    if regions:
        _choose_budget(opened, trial_set, allowed, report_folder, say, quiet)
        return
    source = counted(len(chosen), "image" if images is not None else "rendered scene")
    say(f"Calibrating {name} for {', '.join(kinds)} on {source}: graphs to {folder}, the report to {report_folder}")
    with progress(quiet) as tick:
        calibration = Calibration(opened, chosen, held, seed, trial_set, allowed, report_folder, tick, say)
        report = calibration.run(kinds, source)
        files = write_report(report, report_folder)
    for line in lines(report):
        say(line)
    for path in (*files, folder):
        print(path)


def _choose_budget(
    bundle: "Bundle", trial_set: "TrialSet", allowed: "AccuracyBudget", folder: Path, say: Callable[[str], None],
    quiet: bool,
) -> None:  # fmt: skip
    """Try region budgets, and put the one with the fewest crops into the bundle."""
    from vocabseg.calibration.report.calibration_report import aligned
    from vocabseg.calibration.report.region_report import RegionReport, install, table, write_region_report
    from vocabseg.calibration.trials.region_trials import GRID, fewest_within, run_region_trials

    name, described = bundle.manifest.name, trial_set.description
    say(f"Trying {len(GRID)} region budgets of {name} on {described}: the report to {folder}")
    with progress(quiet) as tick:
        trials = run_region_trials(bundle, trial_set, tick)
    report = RegionReport(name, described, allowed, trials, fewest_within(trials, allowed))
    files = write_region_report(report, folder)
    install(report, bundle)
    for line in (*aligned(table(report)), report.choice):
        say(line)
    for path in (*files, bundle.folder):
        print(path)


def _kinds(text: str) -> list[str]:
    kinds = precision_names(text)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigurationError(f"--precision {text!r}: give some of {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in kinds]


def _demo_copy(say: Callable[[str], None]) -> Path:
    """A copy of the demo model that may be changed; the package's own stays as it is."""
    from vocabseg.runtime.bundle.folder import demo_folder
    from vocabseg.runtime.bundle.manifest import MANIFEST
    from vocabseg.runtime.files import whole_folder

    if not (DEMO / MANIFEST).is_file():
        say(f"Copying the demo model to {DEMO}")
        if DEMO.is_dir() and any(DEMO.iterdir()):
            raise OutputError(f"cannot copy the demo model to {DEMO}: that folder holds other files; work elsewhere")
        with whole_folder(DEMO, "the copy of the demo model") as temporary:
            shutil.copytree(demo_folder(), temporary, dirs_exist_ok=True)
    return DEMO


def _trial_set(
    bundle: "Bundle", images: Path | None, dataset: str | None, data_dir: Path | None, split: str | None, limit: int,
    classes: str | None, scratch: Path, say: Callable[[str], None],
) -> "TrialSet":  # fmt: skip
    """What the precisions are tried on: a data set, the images themselves, or rendered scenes."""
    from vocabseg.benchmarks.datasets.registry import get_dataset
    from vocabseg.benchmarks.speed.selection import default_vocabulary
    from vocabseg.calibration.samples.calibration_images import image_files, trial_scenes
    from vocabseg.calibration.trials.precision_trials import TrialSet

    if dataset is not None and data_dir is not None:
        return TrialSet.of(get_dataset(dataset, data_dir, split), limit)
    if images is None:
        return TrialSet.of(get_dataset("world", trial_scenes(scratch, limit, say)), limit)
    vocabulary = default_vocabulary(bundle) if classes is None else vocabulary_of(classes)
    return TrialSet(image_files(images, limit), vocabulary)
