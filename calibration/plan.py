"""How a graph is quantised, with what was tried before."""

from collections.abc import Mapping

import msgspec

from vocabseg.calibration.scales import Scheme
from vocabseg.calibration.search import BlockLoss, Tried
from vocabseg.calibration.targets import load_graph, targets
from vocabseg.export.half.recipe import GraphRecipe, Keep, Recipe
from vocabseg.runtime.bundle.folder import Bundle


class GraphPlan(msgspec.Struct, frozen=True):
    """How one graph is quantised, and what was tried.

    Attributes:
        tried: schemes, best first; `blocks`: what each block costs alone, worst first.
        scheme: the one that is used.
    """

    graph: str
    tried: list[Tried]
    blocks: list[BlockLoss]
    scheme: Scheme


def quantised_recipe(bundle: Bundle, kind: str, plans: Mapping[str, GraphPlan]) -> Recipe:
    """What stays float in the graphs of a kind, and why, to be read and compared; the graphs are made already."""
    graphs = {}
    for graph, plan in plans.items():
        losses = {layer: (block.block, block.loss) for block in plan.blocks for layer in block.layers}
        keep = []
        for target in targets(load_graph(bundle.graph_path(graph))):
            if target.layer not in plan.scheme.high:
                continue
            reason = "it is next to the graph's input or output"
            if target.layer in losses:
                reason = (
                    f"{target.layer}: {kind} in {losses[target.layer][0]} alone loses {losses[target.layer][1]:.2g}"
                )
            keep.append(Keep(node=target.node, reason=reason))
        graphs[graph] = GraphRecipe(made_for=bundle.graph(graph).digest(), keep=keep)
    return Recipe(precision=kind, graphs=graphs)
