"""A bundle and images in; the same bundle with graphs in lower precision out, each with the evidence for it."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from vocabseg.calibration.feeds import FeedMaker, ImageFeeds
from vocabseg.calibration.fidelity import Judge, figures
from vocabseg.calibration.half_recipe import half_recipe
from vocabseg.calibration.images import Chosen
from vocabseg.calibration.images import identity as images_identity
from vocabseg.calibration.notebook import Notebook
from vocabseg.calibration.plan import GraphPlan
from vocabseg.calibration.quantize import write_quantised
from vocabseg.calibration.ranges import GRAPHS, Ranges, filled, observe
from vocabseg.calibration.search import BlockLoss, Search, Tried
from vocabseg.calibration.targets import load_graph, targets
from vocabseg.export.half.convert import add_half_graphs
from vocabseg.export.half.recipe import write_recipe
from vocabseg.runtime.bundle.folder import Bundle, open_bundle
from vocabseg.runtime.bundle.variants import new_variants
from vocabseg.runtime.text.vocabulary import Vocabulary

Progress = Callable[[str, int, int], None]
Notify = Callable[[str], None]

# Of the images held back, on how many schemes are compared, and each block alone is tried: (small, large graph). A
# large one takes seconds for each, and its many weights average over fewer images.
COMPARED = (8, 3)
SENSITIVITY_FEEDS = (2, 1)
LARGE = 100_000_000  # bytes


class Calibration:
    """A calibration on its way: ranges, then a plan per graph and kind, then files in the bundle."""

    def __init__(
        self,
        folder: Path,
        images: Sequence[Chosen],
        held: Sequence[Chosen],
        seed: int,
        output: Path,
        progress: Progress,
        notify: Notify,
    ):
        self.bundle = open_bundle(folder)
        self.images, self.held, self.seed = list(images), list(held), seed
        self.output, self.progress, self.notify = output, progress, notify
        self.ranges: Ranges = observe(
            self.bundle, self.images, seed, output / "ranges.npz", progress=progress, notify=notify
        )
        self.notebook = Notebook(output / "search.json", self.identity)
        self._searches: dict[tuple[str, str], Search] = {}
        self._judges: dict[str, Judge] = {}
        self._feeds: list[ImageFeeds] = []

    @property
    def identity(self) -> dict[str, Any]:
        """What every result depends on."""
        return {
            "graphs": {graph: self.bundle.graph(graph).digest() for graph in GRAPHS},
            "images": images_identity(self.images),
            "held": images_identity(self.held),
            "seed": self.seed,
            "versions": versions(),
        }

    def search(self, graph: str, kind: str) -> Search:
        """The schemes of a graph; its judge is made when first needed."""
        if (graph, kind) not in self._searches:
            path = self.bundle.graph_path(graph)
            self._searches[graph, kind] = Search(
                graph, path, self.ranges[graph], self.judge(graph), kind, self.progress
            )
        return self._searches[graph, kind]

    def judge(self, graph: str) -> Judge:
        """What compares forms of a graph, on the images held back; made when first needed."""
        if not self._feeds:
            self._feeds = list(FeedMaker(self.bundle, self.seed).feeds(enumerate(self.held, start=len(self.images))))
        if graph not in self._judges:
            count = COMPARED[self._large(graph)]
            self._judges[graph] = Judge(self.bundle.graph_path(graph), filled(self._feeds, graph)[:count])
        return self._judges[graph]

    def _large(self, graph: str) -> bool:
        return self.bundle.graph(graph).total_bytes > LARGE

    def plan(self, graph: str, kind: str, high: Sequence[str] = ()) -> GraphPlan:
        """The best scheme of a graph, with `high` layers left as they are."""
        key = f"{kind}/{graph}/{' '.join(high)}"
        tried = self.notebook.recall(f"{key}/methods", list[Tried], lambda: self.search(graph, kind).methods(high))
        best = tried[0].scheme
        blocks = self.notebook.recall(
            f"{key}/blocks",
            list[BlockLoss],
            lambda: self.search(graph, kind).sensitivity(best, SENSITIVITY_FEEDS[self._large(graph)]),
        )
        return GraphPlan(graph, tried, blocks, best)

    def raise_to(self, plan: GraphPlan, high: tuple[str, ...]) -> GraphPlan:
        """The same plan with these layers left as they are."""
        return msgspec.structs.replace(plan, scheme=msgspec.structs.replace(plan.scheme, high=high))

    def write(self, kind: str, plans: Mapping[str, GraphPlan]) -> Bundle:
        """Put the quantised graphs into the bundle; the text encoders of the variant are the float32 ones."""
        with new_variants(self.bundle.folder) as variants:
            for name, record in self.bundle.manifest.graphs.items():
                if name in plans and not self._all_high(name, plans[name]):
                    self.progress(f"writing {name} in {kind}", 0, 1)
                    target = variants.place(kind) / f"{name}.onnx"
                    record = write_quantised(
                        self.bundle.graph_path(name),
                        target,
                        plans[name].scheme,
                        self.ranges[name],
                        provenance=self.provenance(plans[name]),
                    )
                variants.add(kind, name, record)
        self.bundle = open_bundle(self.bundle.folder, verify=False)
        return self.bundle

    def write_half(self, vocabulary: Vocabulary) -> list[str]:
        """Put FP16 graphs into the bundle, and their recipe into the report; returns what it keeps, in words."""
        recipe, notes = half_recipe(
            self.bundle, self.ranges, self.judge, vocabulary, self.notebook.recall, self.progress
        )
        path = self.output / "recipe-float16.toml"
        write_recipe(recipe, path)
        add_half_graphs(self.bundle.folder, recipe, self.progress)
        self.bundle = open_bundle(self.bundle.folder, verify=False)
        return [*notes, f"float16: the recipe is {path} (vocabseg build {self.bundle.folder} --recipe {path})"]

    def _all_high(self, graph: str, plan: GraphPlan) -> bool:
        found = targets(load_graph(self.bundle.graph_path(graph)))
        return {target.layer for target in found} <= set(plan.scheme.high)

    def provenance(self, plan: GraphPlan) -> dict[str, Any]:
        """What a graph's record says about how it was made."""
        used = next((one for one in plan.tried if one.scheme == plan.scheme), plan.tried[0])
        return {
            "source": self.bundle.graph(plan.graph).digest(),
            "scheme": msgspec.to_builtins(plan.scheme),
            "fidelity": dict(figures(used.fidelity)),
            "images": {"count": len(self.images), "seed": self.seed, "sha256": images_identity(self.images)},
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Of the packages that a quantised graph depends on."""
    found = {}
    for package in ("vocabseg", "onnx", "onnx-ir", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
