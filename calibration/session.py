"""The whole of a calibration: ranges, graphs in every precision, trials, and the choice."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vocabseg.calibration.budget import quantise_within
from vocabseg.calibration.calibrate import Calibration
from vocabseg.calibration.decide import Budget, choose
from vocabseg.calibration.images import Chosen
from vocabseg.calibration.plan import GraphPlan, quantised_recipe
from vocabseg.calibration.ranges import GRAPHS
from vocabseg.calibration.report import Report
from vocabseg.calibration.targets import ends, load_graph
from vocabseg.calibration.trials import TrialSet, default_precisions, run_trials
from vocabseg.export.half.recipe import write_recipe
from vocabseg.runtime.engines.choose import installed

Progress = Callable[[str, int, int], None]
Notify = Callable[[str], None]


def calibrate_bundle(
    folder: Path,
    images: Sequence[Chosen],
    held: Sequence[Chosen],
    kinds: Sequence[str],
    budget: Budget,
    trial_set: TrialSet,
    seed: int,
    output: Path,
    source: str,
    progress: Progress,
    notify: Notify,
) -> Report:
    """Add graphs of every kind ("float16", "int8", "fp8") to the bundle at `folder` and compare what they cost.

    `images` give the ranges, `held` are what schemes are compared on, `trial_set` what the precisions are tried on,
    `output` keeps what is done, so that a stopped calibration goes on. `source` says in words what the images are.
    Raises CalibrationError, BundleError, EngineError and OutputError.
    """
    run = Calibration(folder, images, held, seed, output, progress, notify)
    fast = "openvino" if installed("openvino") else "onnxruntime"
    plans: dict[str, dict[str, GraphPlan]] = {}
    notes: list[str] = []
    for kind in kinds:
        if kind == "float16":
            notes += run.write_half(trial_set.vocabulary)
            continue
        high = {graph: ends(load_graph(run.bundle.graph_path(graph))) for graph in GRAPHS} if kind == "fp8" else {}
        plans[kind], said = quantise_within(run, kind, budget, trial_set, high, fast)
        notes += said
        write_recipe(quantised_recipe(run.bundle, kind, plans[kind]), output / f"recipe-{kind}.toml")
    trials = run_trials(run.bundle, default_precisions(run.bundle), trial_set, progress)
    where = trial_set.dataset.name if trial_set.dataset is not None else "the images themselves, without labels"
    return Report(
        bundle=run.bundle.manifest.name,
        images=source,
        tried_on=f"{len(trial_set.files)} images of {where}" if trial_set.dataset is not None else where,
        budget=budget,
        trials=trials,
        chosen=choose(trials, budget),
        plans=plans,
        notes=notes,
    )
