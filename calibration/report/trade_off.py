"""A calibration's picture: quality against time and size, and which blocks suffer most from eight bits."""

from pathlib import Path
from typing import TYPE_CHECKING

from vocabseg.calibration.search.schemes import GraphPlan
from vocabseg.calibration.trials.accuracy_budget import AccuracyBudget, Tried, pareto, quality
from vocabseg.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vocabseg.calibration.report.calibration_report import CalibrationReport

# Okabe and Ito's colours, distinguishable for colour-blind readers too.
COLOURS = {
    "float32": "#000000", "bfloat16": "#0072b2", "float16": "#56b4e9", "int8": "#d55e00", "fp8": "#009e73"
}  # fmt: skip
OTHER = "#777777"
DPI = 110
WORST_BLOCKS = 12
# Where a point's name may stand: its offset in points and alignment.
SIDES = (((6, 6), "left", "bottom"), ((6, -6), "left", "top"), ((-6, 6), "right", "bottom"), ((-6, -6), "right", "top"))
# Points closer than this share of both axes would have their names in one place.
NEAR = (0.25, 0.08)


def plot(report: "CalibrationReport", path: Path) -> None:
    """Draw the picture into a PNG file; raises OutputError."""
    from matplotlib.figure import Figure

    blocks = [(kind, plan) for kind, plans in report.plans.items() for plan in plans.values() if plan.blocks]
    columns = max(2, len(blocks))
    figure = Figure(figsize=(4.4 * columns, 8.4 if blocks else 4.6), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(2 if blocks else 1, 2 * columns)
    _scatter(figure.add_subplot(grid[0, :columns]), report, "time")
    _scatter(figure.add_subplot(grid[0, columns:]), report, "size")
    for place, (kind, plan) in enumerate(blocks):
        _blocks(figure.add_subplot(grid[1, 2 * place : 2 * place + 2]), kind, plan)
    figure.suptitle(f"{report.bundle}: {report.choice}", fontsize=11)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _scatter(axes: "Axes", report: "CalibrationReport", against: str) -> None:
    points = [
        (trial, 1000 * (trial.seconds or 0) if against == "time" else trial.bytes / 1e6)
        for trial in report.trials
        if against == "size" or trial.seconds is not None
    ]
    if against == "time":
        front = pareto(report.trials)
        line = sorted((where, quality(trial)) for trial, where in points if trial in front)
        axes.plot(*zip(*line, strict=True), color="#999999", linestyle="--", zorder=1, label="Pareto front")
        axes.legend(fontsize=8, loc="lower right")
    named: list[tuple[str, float, float]] = []
    for trial, where in points:
        chosen = trial == report.chosen
        named.append((trial.precision + (" (chosen)" if chosen else ""), where, quality(trial)))
        axes.scatter(
            where, quality(trial), s=110 if chosen else 55, color=COLOURS.get(trial.precision, OTHER),
            edgecolor="#000000", linewidth=1.6 if chosen else 0.5, zorder=3,
        )  # fmt: skip
    least = floor(report.trials[0], report.budget)
    if least is not None:
        axes.axhline(least, color="#d55e00", linewidth=0.8, linestyle=":")
        axes.annotate("budget", (1, least), (-4, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=8, color="#d55e00", ha="right")  # fmt: skip
    labelled = report.trials[0].miou is not None
    axes.set_ylabel("mIoU, %" if labelled else "pixels with float32's label, %")
    axes.set_xlabel("ms per image, median" if against == "time" else "MB of graphs for an image")
    axes.margins(y=0.25)
    axes.set_xlim(0, 1.3 * max((where for _, where in points), default=1.0))
    axes.grid(alpha=0.3)
    name_points(axes, named)


def name_points(axes: "Axes", points: list[tuple[str, float, float]]) -> None:
    """Write names beside points (name, x, y), neighbours' on different sides; the axes' limits are final."""
    sizes = [abs(high - low) or 1.0 for low, high in (axes.get_xlim(), axes.get_ylim())]
    taken: list[tuple[float, float, int]] = []
    for name, x, y in sorted(points, key=lambda point: -point[2]):
        near = {side for a, b, side in taken if abs(a - x) < NEAR[0] * sizes[0] and abs(b - y) < NEAR[1] * sizes[1]}
        side = next((one for one in range(len(SIDES)) if one not in near), 0)
        taken.append((x, y, side))
        offset, across, along = SIDES[side]
        axes.annotate(name, (x, y), offset, textcoords="offset points", fontsize=8, ha=across, va=along)


def _blocks(axes: "Axes", kind: str, plan: GraphPlan) -> None:
    shown = plan.blocks[:WORST_BLOCKS][::-1]
    axes.barh(
        [block.block if len(block.block) <= 28 else "..." + block.block[-25:] for block in shown],
        [max(block.loss, 1e-9) for block in shown],
        color=["#bbbbbb" if plan.keeps(block) else COLOURS.get(kind, OTHER) for block in shown],
    )
    axes.tick_params(labelsize=7)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.set_title(f"{plan.graph}, {plan.scheme.name}: the worst blocks", fontsize=9)
    axes.set_xlabel("loss when it alone is quantised (grey: kept high)", fontsize=8)


def floor(baseline: Tried, budget: AccuracyBudget) -> float | None:
    """The least quality within the budget."""
    if baseline.miou is not None:
        return None if budget.miou is None else baseline.miou - budget.miou
    return None if budget.disagreement is None else 100 - budget.disagreement
