"""The worst blocks stay high until the budget holds."""

from collections.abc import Mapping, Sequence

import pytest

from vocabseg.calibration.graphs.scales import Scheme
from vocabseg.calibration.search.schemes import BlockLoss, GraphPlan
from vocabseg.calibration.session import Calibration
from vocabseg.calibration.trials.accuracy_budget import AccuracyBudget
from vocabseg.calibration.trials.precision_trials import Trial

# What each layer costs in points of mIoU, and what the sensitivity says of its block.
COSTS = {"a.0": 0.1, "a.1": 2.0, "b.0": 0.1, "b.1": 0.4}
LOSSES = {"a.0": 0.001, "a.1": 0.5, "b.0": 1.0, "b.1": 3.0}
GRAPHS = {"image_encoder": ["a.0", "a.1"], "proposal": ["b.0", "b.1"]}


class Rehearsal(Calibration):
    """A calibration of two graphs of two blocks, written without files."""

    def __init__(self, allowed: float) -> None:
        self.budget = AccuracyBudget(miou=allowed)
        self.notes: list[str] = []
        self.written: list[set[str]] = []

    def plan(self, graph: str, kind: str, high: Sequence[str] = ()) -> GraphPlan:
        blocks = [BlockLoss(layer, LOSSES[layer], 1, (layer,)) for layer in GRAPHS[graph]]
        return GraphPlan(graph, [], sorted(blocks, key=lambda one: -one.loss), Scheme(kind=kind, high=tuple(high)))

    def write(self, kind: str, plans: Mapping[str, GraphPlan]) -> None:
        self.written.append({layer for plan in plans.values() for layer in plan.scheme.high})

    def trial(self, kind: str, plans: Mapping[str, GraphPlan]) -> tuple[Trial, Trial]:
        lost = sum(cost for layer, cost in COSTS.items() if layer not in self.written[-1])
        return trial("float32", 80.0), trial(kind, 80.0 - lost)


def trial(precision: str, miou: float) -> Trial:
    return Trial(precision, "openvino", 1, miou, None, None, 1, 1, 100, 1.0, 1)


@pytest.mark.parametrize(
    ("allowed", "high"),
    [(3.0, set()), (1.0, {"a.1"}), (0.5, {"a.1", "b.1", "b.0"}), (0.0, set(COSTS))],
)
def test_blocks_are_raised_until_the_budget_holds(allowed: float, high: set[str]) -> None:
    run = Rehearsal(allowed)
    plans = run.quantise("int8")
    assert run.written[-1] == high
    assert {layer for plan in plans.values() for layer in plan.scheme.high} == high
    assert len(run.notes) == len(high)
    assert all("points of mIoU" in note for note in run.notes)
