"""The worst blocks stay high until the budget holds."""

import pytest

from vocabseg.calibration import budget
from vocabseg.calibration.budget import quantise_within
from vocabseg.calibration.decide import Budget
from vocabseg.calibration.plan import GraphPlan
from vocabseg.calibration.scales import Scheme
from vocabseg.calibration.search import BlockLoss
from vocabseg.calibration.trials import Trial

# What each layer costs in points of mIoU, and what the sensitivity says of its block.
COSTS = {"a.0": 0.1, "a.1": 2.0, "b.0": 0.1, "b.1": 0.4}
LOSSES = {"a.0": 0.001, "a.1": 0.5, "b.0": 1.0, "b.1": 3.0}
GRAPHS = {"image_encoder": ["a.0", "a.1"], "proposal": ["b.0", "b.1"]}


class Run:
    """Stands for a calibration: two graphs of two blocks, written without files."""

    def __init__(self) -> None:
        self.written: list[set[str]] = []

    def plan(self, graph: str, kind: str, high: list[str]) -> GraphPlan:
        blocks = [BlockLoss(layer, LOSSES[layer], 1, (layer,)) for layer in GRAPHS[graph]]
        return GraphPlan(graph, [], sorted(blocks, key=lambda one: -one.loss), Scheme(kind=kind, high=tuple(high)))

    def raise_to(self, plan: GraphPlan, high: tuple[str, ...]) -> GraphPlan:
        return GraphPlan(plan.graph, plan.tried, plan.blocks, Scheme(kind=plan.scheme.kind, high=high))

    def write(self, kind: str, plans: dict[str, GraphPlan]) -> None:
        self.written.append({layer for plan in plans.values() for layer in plan.scheme.high})


def trial(precision: str, miou: float) -> Trial:
    return Trial(precision, "openvino", 1, miou, None, None, 1, 1, 100, 1.0, 1)


@pytest.mark.parametrize(
    ("allowed", "high"),
    [(3.0, set()), (1.0, {"a.1"}), (0.5, {"a.1", "b.1", "b.0"}), (0.0, set(COSTS))],
)
def test_blocks_are_raised_until_it_holds(allowed: float, high: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(run: Run, kind: str, plans: dict[str, GraphPlan], *_: object) -> tuple[Trial, Trial]:
        lost = sum(cost for layer, cost in COSTS.items() if layer not in run.written[-1])
        return trial("float32", 80.0), trial(kind, 80.0 - lost)

    monkeypatch.setattr(budget, "_trial", tried)
    run = Run()
    plans, notes = quantise_within(run, "int8", Budget(miou=allowed), None, {}, "openvino")  # type: ignore[arg-type]
    assert run.written[-1] == high
    assert {layer for plan in plans.values() for layer in plan.scheme.high} == high
    assert len(notes) == len(high)
    assert all("points of mIoU" in note for note in notes)
