"""A bundle and images in; the same bundle with graphs in lower precision out, each with the evidence for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from vocabseg.calibration.graphs.linear_nodes import ends, linear_nodes, load_graph
from vocabseg.calibration.graphs.quantize import write_quantised
from vocabseg.calibration.report.calibration_report import CalibrationReport
from vocabseg.calibration.samples.calibration_images import CalibrationImage, Notify, identity
from vocabseg.calibration.samples.feeds import FeedMaker, ImageFeeds, filled
from vocabseg.calibration.samples.ranges import GRAPHS, Ranges, observe
from vocabseg.calibration.search.fidelity import Comparator
from vocabseg.calibration.search.half_recipe import half_recipe
from vocabseg.calibration.search.journal import Journal
from vocabseg.calibration.search.schemes import BlockLoss, GraphPlan, SchemeResult, SchemeSearch, quantised_recipe
from vocabseg.calibration.trials.accuracy_budget import AccuracyBudget, fastest_within
from vocabseg.calibration.trials.precision_trials import Trial, TrialSet, cpu_engine, default_precisions, run_trials
from vocabseg.export.half.convert import add_half_graphs
from vocabseg.export.half.recipe import write_recipe
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import MANIFEST, read_manifest
from vocabseg.runtime.bundle.variants import new_variants
from vocabseg.runtime.progress import Progress

# Of the images held back, on how many schemes are compared, and each block alone is tried: (small, large graph). A
# large graph takes seconds for each, and its many weights average over fewer images.
COMPARED = (8, 3)
SENSITIVITY_FEEDS = (2, 1)
LARGE = 100_000_000  # bytes
# Rounds of raising blocks; the first raises one block, each further one twice as many.
ROUNDS = 6


@dataclass
class Calibration:
    """A calibration of an opened bundle: ranges, then a plan per graph and kind, then files in the bundle.

    Attributes:
        images: what the ranges come from; `held`: other images, on which schemes are compared.
        trial_set: what precisions are tried on.
        output: the folder that keeps what is done, so that a stopped calibration can go on.
        notes: what was decided on the way, in words.
    """

    bundle: Bundle
    images: Sequence[CalibrationImage]
    held: Sequence[CalibrationImage]
    seed: int
    trial_set: TrialSet
    budget: AccuracyBudget
    output: Path
    progress: Progress
    notify: Notify
    notes: list[str] = field(default_factory=list)
    _comparators: dict[str, Comparator] = field(default_factory=dict)

    def run(self, kinds: Sequence[str], source: str) -> CalibrationReport:
        """Add graphs of every kind ("float16", "int8", "fp8") to the bundle and compare what they cost.

        `source` says in words what the images are. Raises CalibrationError, BundleError, EngineError and OutputError.
        """
        _ = self.ranges
        plans: dict[str, dict[str, GraphPlan]] = {}
        for kind in kinds:
            if kind == "float16":
                self.write_half()
            else:
                plans[kind] = self.quantise(kind)
                write_recipe(quantised_recipe(self.bundle, kind, plans[kind]), self.output / f"recipe-{kind}.toml")
        trials = run_trials(self.bundle, default_precisions(self.bundle), self.trial_set, self.progress)
        return CalibrationReport(
            bundle=self.bundle.manifest.name,
            images=source,
            tried_on=self.trial_set.description,
            budget=self.budget,
            trials=trials,
            chosen=fastest_within(trials, self.budget),
            plans=plans,
            notes=self.notes,
        )

    @cached_property
    def ranges(self) -> Ranges:
        state = self.output / "ranges.npz"
        return observe(self.bundle, self.images, self.seed, state, self.progress, self.notify)

    @cached_property
    def journal(self) -> Journal:
        depends_on = {
            "graphs": {graph: self.bundle.graph(graph).digest() for graph in GRAPHS},
            "images": identity(self.images),
            "held": identity(self.held),
            "seed": self.seed,
            "versions": versions(),
        }
        return Journal(self.output / "search.json", depends_on)

    @cached_property
    def _feeds(self) -> list[ImageFeeds]:
        maker = FeedMaker(self.bundle, self.seed)
        return [maker.feeds(number, image) for number, image in enumerate(self.held, start=len(self.images))]

    def comparator(self, graph: str) -> Comparator:
        """Compares forms of a graph on the images held back."""
        if graph not in self._comparators:
            feeds = filled(self._feeds, graph)[: COMPARED[self._large(graph)]]
            self._comparators[graph] = Comparator(self.bundle.graph_path(graph), feeds)
        return self._comparators[graph]

    def _large(self, graph: str) -> bool:
        return self.bundle.graph(graph).total_bytes > LARGE

    def write_half(self) -> None:
        """Put FP16 graphs into the bundle, and their recipe into the report's folder."""
        recipe, notes = half_recipe(
            self.bundle, self.ranges, self.comparator, self.trial_set.vocabulary, self.journal, self.progress
        )
        path = self.output / "recipe-float16.toml"
        write_recipe(recipe, path)
        self.bundle = add_half_graphs(self.bundle, recipe, self.progress)
        self.notes += [*notes, f"float16: the recipe is {path} (vocabseg build {self.bundle.folder} --recipe {path})"]

    def quantise(self, kind: str) -> dict[str, GraphPlan]:
        """Put the graphs of a kind into the bundle, with as few blocks left in float32 as the budget allows.

        After the last round the graphs stay as they are; the notes say what was raised, and why.
        """
        plans = {}
        for graph in GRAPHS:
            high = ends(load_graph(self.bundle.graph_path(graph))) if kind == "fp8" else ()
            plans[graph] = self.plan(graph, kind, high)
        for round_ in range(ROUNDS):
            self.write(kind, plans)
            baseline, trial = self.trial(kind, plans)
            broken = self.budget.broken(trial, baseline)
            if not broken:
                return plans
            raised = _worst(plans, 1 << round_)
            if not raised:
                self.notes.append(f"{kind} {broken}; every block is high already")
                return plans
            for graph, block in raised:
                plans[graph] = plans[graph].keep_high(block.layers)
                self.notes.append(f"{kind} {broken}: {block.block} of {graph} stays high")
        self.write(kind, plans)
        return plans

    def plan(self, graph: str, kind: str, high: Sequence[str] = ()) -> GraphPlan:
        """The best scheme for a graph, with `high` layers left in float32."""
        key = f"{kind}/{graph}/{' '.join(high)}"

        def search() -> SchemeSearch:
            path, statistics = self.bundle.graph_path(graph), self.ranges[graph]
            return SchemeSearch(graph, path, statistics, self.comparator(graph), kind, self.progress)

        tried = self.journal.recall(f"{key}/methods", list[SchemeResult], lambda: search().methods(high))
        best, feeds = tried[0].scheme, SENSITIVITY_FEEDS[self._large(graph)]
        blocks = self.journal.recall(f"{key}/blocks", list[BlockLoss], lambda: search().sensitivity(best, feeds))
        return GraphPlan(graph, tried, blocks, best)

    def trial(self, kind: str, plans: Mapping[str, GraphPlan]) -> tuple[Trial, Trial]:
        """Float32 and the graphs of a kind, as they are in the bundle, tried on whole images.

        The graphs are computed literally: which blocks stay high is a matter of the graph, which other engines and
        TensorRT run too, not of what one CPU's instructions make of it.
        """
        schemes = "/".join(repr(plan.scheme) for plan in plans.values())
        precisions = [(cpu_engine("float32"), "float32"), ("onnxruntime", kind)]
        first, second = self.journal.recall(
            f"{kind}/literal/{self.trial_set.identity}/{schemes}",
            list[Trial],
            lambda: run_trials(self.bundle, precisions, self.trial_set, self.progress, literal=True),
        )
        return first, second

    def write(self, kind: str, plans: Mapping[str, GraphPlan]) -> None:
        """Put the quantised graphs into the bundle; the text encoders of the variant are the float32 ones."""
        with new_variants(self.bundle.folder) as variants:
            for name, record in self.bundle.manifest.graphs.items():
                path = self.bundle.graph_path(name)
                if name in plans and not _all_high(path, plans[name]):
                    self.progress(f"writing {name} in {kind}", 0, 1)
                    target, provenance = variants.place(kind) / f"{name}.onnx", self.provenance(plans[name])
                    scheme, statistics = plans[name].scheme, self.ranges[name]
                    record = write_quantised(path, target, scheme, statistics, provenance=provenance)
                variants.add(kind, name, record)
        self._read_again()

    def provenance(self, plan: GraphPlan) -> dict[str, Any]:
        """What a graph's record says about how it was made."""
        used = next((one for one in plan.tried if one.scheme == plan.scheme), plan.tried[0])
        return {
            "source": self.bundle.graph(plan.graph).digest(),
            "scheme": msgspec.to_builtins(plan.scheme),
            "fidelity": used.fidelity.figures(),
            "images": {"count": len(self.images), "seed": self.seed, "sha256": identity(self.images)},
            "versions": versions(),
        }

    def _read_again(self) -> None:
        """The manifest names new graphs now; everything else of the bundle was checked when it was opened."""
        self.bundle = self.bundle.with_manifest(read_manifest(self.bundle.path(MANIFEST)))


def _all_high(path: Path, plan: GraphPlan) -> bool:
    return {node.layer for node in linear_nodes(load_graph(path))} <= set(plan.scheme.high)


def _worst(plans: Mapping[str, GraphPlan], count: int) -> list[tuple[str, BlockLoss]]:
    """The graph and block with the largest shares of their graph's loss, of those that are not high yet."""
    ranked = []
    for graph, plan in plans.items():
        total = sum(block.loss for block in plan.blocks) or 1.0
        ranked += [(block.loss / total, graph, block) for block in plan.blocks if not plan.keeps(block)]
    ranked.sort(key=lambda one: (one[0], one[1], one[2].block), reverse=True)
    return [(graph, block) for _, graph, block in ranked[:count]]


def versions() -> dict[str, str]:
    """Of the packages that a quantised graph depends on."""
    found = {}
    for package in ("vocabseg", "onnx", "onnx-ir", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
