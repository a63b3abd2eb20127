"""Raise the worst blocks of a quantised bundle until what it loses is within the budget."""

from collections.abc import Callable, Mapping

from vocabseg.calibration.calibrate import Calibration
from vocabseg.calibration.decide import Budget
from vocabseg.calibration.plan import GraphPlan
from vocabseg.calibration.ranges import GRAPHS
from vocabseg.calibration.trials import EMULATED, Trial, TrialSet, run_trials

# Blocks raised in the first round; each further one raises twice as many.
FIRST = 1
ROUNDS = 6

Progress = Callable[[str, int, int], None]


def quantise_within(
    run: Calibration,
    kind: str,
    budget: Budget,
    images: TrialSet,
    always_high: Mapping[str, tuple[str, ...]],
    fast: str,
) -> tuple[dict[str, GraphPlan], list[str]]:
    """Write the graphs of a kind into the bundle with as few blocks kept high as the budget allows.

    Returns the plans and what was raised, in words. After the last round the graphs stay as they are then, and the
    notes say that they exceed the budget.
    """
    high = {graph: list(always_high.get(graph, ())) for graph in GRAPHS}
    plans = {graph: run.plan(graph, kind, high[graph]) for graph in GRAPHS}
    notes: list[str] = []
    engine = "onnxruntime" if kind in EMULATED else fast
    for round_ in range(ROUNDS):
        run.write(kind, plans)
        baseline, trial = _trial(run, kind, plans, engine, fast, images)
        broken = budget.broken(trial, baseline)
        if not broken:
            break
        raised = _worst(plans, high, FIRST << round_)
        if not raised:
            notes.append(f"{kind} {broken}; every block is high already")
            break
        for graph, block, layers in raised:
            high[graph] += layers
            notes.append(f"{kind} {broken}: {block} of {graph} stays high")
        plans = {graph: run.raise_to(plans[graph], tuple(high[graph])) for graph in GRAPHS}
    else:
        run.write(kind, plans)
    return plans, notes


def _trial(
    run: Calibration, kind: str, plans: Mapping[str, GraphPlan], engine: str, fast: str, images: TrialSet
) -> tuple[Trial, Trial]:
    schemes = "/".join(repr(plan.scheme) for plan in plans.values())

    def compute() -> list[Trial]:
        return run_trials(run.bundle, [(fast, "float32"), (engine, kind)], images, run.progress)

    found = run.notebook.recall(f"{kind}/trial/{images.identity}/{schemes}", list[Trial], compute)
    return found[0], found[1]


def _worst(
    plans: Mapping[str, GraphPlan], high: Mapping[str, list[str]], count: int
) -> list[tuple[str, str, tuple[str, ...]]]:
    """The blocks with the largest share of their graph's loss that are not high yet: graph, block, layers."""
    ranked = []
    for graph, plan in plans.items():
        total = sum(block.loss for block in plan.blocks) or 1.0
        ranked += [
            (block.loss / total, graph, block.block, block.layers)
            for block in plan.blocks
            if not set(block.layers) <= set(high[graph])
        ]
    return [(graph, block, layers) for _, graph, block, layers in sorted(ranked, reverse=True)[:count]]
