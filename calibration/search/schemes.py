"""Which scheme quantises a graph best, and which of its blocks suffer most from it."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vocabseg.calibration.failures import CalibrationError
from vocabseg.calibration.graphs.linear_nodes import blocks, linear_nodes, load_graph
from vocabseg.calibration.graphs.quantize import write_quantised
from vocabseg.calibration.graphs.scales import Scheme
from vocabseg.calibration.graphs.thresholds import METHODS
from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.calibration.search.fidelity import Comparator, Fidelity
from vocabseg.export.half.recipe import GraphRecipe, Keep, Recipe
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.progress import Progress

# SmoothQuant's alphas, tried on graphs with a LayerNormalization before a linear node.
ALPHAS = (0.5, 0.7)
# A scheme must beat a plainer one by this share of the loss to be preferred.
GAIN = 0.03


class SchemeResult(msgspec.Struct, frozen=True):
    """A scheme and how near it came to float32."""

    scheme: Scheme
    fidelity: Fidelity


class BlockLoss(msgspec.Struct, frozen=True):
    """What quantising one block alone costs: `loss` as `Fidelity.loss`; weights of the block and its layers."""

    block: str
    loss: float
    weights: int
    layers: tuple[str, ...]


class GraphPlan(msgspec.Struct, frozen=True):
    """How one graph is quantised, and what was tried.

    Attributes:
        tried: schemes, best first; `blocks`: what each block costs alone, worst first.
        scheme: the one that is used.
    """

    graph: str
    tried: list[SchemeResult]
    blocks: list[BlockLoss]
    scheme: Scheme

    def keeps(self, block: BlockLoss) -> bool:
        """Whether all layers of a block stay in float32."""
        return set(block.layers) <= set(self.scheme.high)

    def keep_high(self, layers: Sequence[str]) -> "GraphPlan":
        """The same plan with these layers left in float32, too."""
        scheme = msgspec.structs.replace(self.scheme, high=(*self.scheme.high, *layers))
        return msgspec.structs.replace(self, scheme=scheme)


@dataclass(frozen=True)
class SchemeSearch:
    """Tries schemes of one kind on one graph; `comparator` works on images that the statistics have not seen."""

    graph: str
    path: Path
    statistics: Mapping[str, Statistics]
    comparator: Comparator
    kind: str
    progress: Progress

    def methods(self, high: Sequence[str] = ()) -> list[SchemeResult]:
        """Every method of choosing scales, and SmoothQuant where it can be folded, best first."""
        schemes = [Scheme(kind=self.kind, method=method, high=tuple(high)) for method in METHODS]
        if any(one.channels.size for one in self.statistics.values()):
            schemes += [Scheme(kind=self.kind, method="max", smooth=alpha, high=tuple(high)) for alpha in ALPHAS]
        what = f"{self.graph} in {self.kind}: methods"
        tried = []
        for done, scheme in enumerate(schemes):
            self.progress(what, done, len(schemes))
            tried.append(SchemeResult(scheme, self._fidelity(scheme)))
        self.progress(what, len(schemes), len(schemes))
        # The first is the plainest: another one must be clearly better.
        return sorted(tried, key=lambda one: one.fidelity.loss * (1 + GAIN * (one.scheme != schemes[0])))

    def sensitivity(self, scheme: Scheme, feeds: int | None = None) -> list[BlockLoss]:
        """What each block costs when it alone is quantised by `scheme`, worst first."""
        nodes = linear_nodes(load_graph(self.path))
        grouped = blocks(node for node in nodes if node.layer not in scheme.high)
        what = f"{self.graph} in {self.kind}: blocks"
        found = []
        for done, (block, members) in enumerate(grouped.items()):
            self.progress(what, done, len(grouped))
            layers = tuple(dict.fromkeys(node.layer for node in members))
            others = tuple(dict.fromkeys(node.layer for node in nodes if node.layer not in layers))
            try:
                loss = self._fidelity(msgspec.structs.replace(scheme, high=others), feeds).loss
            except CalibrationError:  # all its activations are constant zeros: there is nothing to quantise
                continue
            found.append(BlockLoss(block, loss, sum(node.size for node in members), layers))
        self.progress(what, len(grouped), len(grouped))
        return sorted(found, key=lambda one: -one.loss)

    def _fidelity(self, scheme: Scheme, feeds: int | None = None) -> Fidelity:
        """Of the graph quantised by a scheme, in a temporary file."""
        with tempfile.TemporaryDirectory(prefix="vocabseg-quantised-") as scratch:
            path = Path(scratch) / self.path.name
            write_quantised(self.path, path, scheme, self.statistics)
            return self.comparator.fidelity(path, feeds)


def quantised_recipe(bundle: Bundle, kind: str, plans: Mapping[str, GraphPlan]) -> Recipe:
    """What stays float in the graphs of a kind, and why: a record to read and compare, made after the graphs."""
    graphs = {}
    for graph, plan in plans.items():
        losses = {layer: block for block in plan.blocks for layer in block.layers}
        keep = []
        for node in linear_nodes(load_graph(bundle.graph_path(graph))):
            if node.layer in plan.scheme.high:
                block = losses.get(node.layer)
                reason = "it is next to the graph's input or output"
                if block is not None:
                    reason = f"{node.layer}: {kind} in {block.block} alone loses {block.loss:.2g}"
                keep.append(Keep(node=node.node, reason=reason))
        graphs[graph] = GraphRecipe(made_for=bundle.graph(graph).digest(), keep=keep)
    return Recipe(precision=kind, graphs=graphs)
