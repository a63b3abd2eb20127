"""What a calibration found, as a table, a picture and files to keep."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vocabseg.calibration.decide import Budget, pareto, quality
from vocabseg.calibration.plan import GraphPlan
from vocabseg.calibration.trials import Trial
from vocabseg.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = {
    "float32": "#000000", "bfloat16": "#0072b2", "float16": "#56b4e9", "int8": "#d55e00", "fp8": "#009e73"
}  # fmt: skip
DPI = 110
WORST_BLOCKS = 12


class Report(msgspec.Struct, frozen=True):
    """Everything that a calibration found; written as calibration.json.

    Attributes:
        bundle: its name; `images`: what the ranges come from; `tried_on`: what the trials ran on.
        trials: a line of the table each, float32 first.
        chosen: the precision that was chosen under `budget`.
        plans: by precision and graph, how it was quantised, and what was tried.
        notes: what was decided on the way, in words.
    """

    bundle: str
    images: str
    tried_on: str
    budget: Budget
    trials: list[Trial]
    chosen: Trial
    plans: dict[str, dict[str, GraphPlan]]
    notes: list[str]


def table(report: Report) -> list[list[str]]:
    """Rows of text, the headings first; a star marks the Pareto front, an arrow the chosen precision."""
    front = pareto(report.trials)
    rows = [
        ["", "precision", "engine", "mIoU", "seen", "unseen", "cosine", "worst", "agreement", "ms/image", "MB", "size"]
    ]
    for trial in report.trials:
        mark = ("*" if trial in front else "") + (" <-" if trial == report.chosen else "")
        rows.append(
            [
                mark.strip(),
                trial.precision,
                trial.engine,
                *(_percent(value) for value in (trial.miou, trial.seen, trial.unseen)),
                f"{trial.cosine:.5f}",
                f"{trial.worst:.4f}",
                f"{trial.agreement:.2f} %",
                "(needs a GPU)" if trial.seconds is None else f"{1000 * trial.seconds:.0f}",
                f"{trial.bytes / 1e6:.1f}",
                f"{100 * trial.bytes / max(report.trials[0].bytes, 1):.0f} %",
            ]
        )
    return rows


def lines(report: Report) -> list[str]:
    """The table as aligned text, with what its marks mean and what was chosen."""
    rows = table(report)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*text, "* no other one is both faster and better", *report.notes, _choice(report)]


def write_report(report: Report, folder: Path) -> list[Path]:
    """calibration.json, calibration.md and calibration.png in `folder`; returns them. Raises OutputError."""
    data, page, picture = (folder / f"calibration.{suffix}" for suffix in ("json", "md", "png"))
    with atomic_write(data) as file:
        file.write(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    with atomic_write(page) as file:
        file.write(("\n".join(_page(report)) + "\n").encode())
    plot(report, picture)
    return [data, page, picture]


def plot(report: Report, path: Path) -> None:
    """Quality against time and against size, and which blocks of the graphs suffer most from eight bits."""
    from matplotlib.figure import Figure

    blocks = [(kind, plan) for kind, plans in report.plans.items() for plan in plans.values() if plan.blocks]
    columns = max(2, len(blocks))
    figure = Figure(figsize=(4.4 * columns, 8.4 if blocks else 4.6), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(2 if blocks else 1, 2 * columns)
    _scatter(figure.add_subplot(grid[0, :columns]), report, "time")
    _scatter(figure.add_subplot(grid[0, columns:]), report, "size")
    for place, (kind, plan) in enumerate(blocks):
        _blocks(figure.add_subplot(grid[1, 2 * place : 2 * place + 2]), kind, plan)
    figure.suptitle(f"{report.bundle}: {_choice(report)}", fontsize=11)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _scatter(axes: "Axes", report: Report, against: str) -> None:
    points = [
        (trial, 1000 * (trial.seconds or 0) if against == "time" else trial.bytes / 1e6)
        for trial in report.trials
        if against == "size" or trial.seconds is not None
    ]
    front = [(where, quality(trial)) for trial, where in points if trial in pareto(report.trials)]
    if against == "time":
        front.sort()
        axes.plot(*zip(*front, strict=True), color="#999999", linestyle="--", zorder=1, label="Pareto front")
        axes.legend(fontsize=8, loc="lower right")
    named: list[tuple[str, float, float]] = []
    for trial, where in points:
        chosen = trial == report.chosen
        named.append((trial.precision + (" (chosen)" if chosen else ""), where, quality(trial)))
        axes.scatter(
            where, quality(trial), s=110 if chosen else 55, color=COLOURS.get(trial.precision, "#777777"),
            edgecolor="#000000", linewidth=1.6 if chosen else 0.5, zorder=3,
        )  # fmt: skip
    floor = _floor(report)
    if floor is not None:
        axes.axhline(floor, color="#d55e00", linewidth=0.8, linestyle=":")
        axes.annotate("budget", (1, floor), (-4, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=8, color="#d55e00", ha="right")  # fmt: skip
    labelled = report.trials[0].miou is not None
    axes.set_ylabel("mIoU, %" if labelled else "pixels with float32's label, %")
    axes.set_xlabel("ms per image, median" if against == "time" else "MB of graphs for an image")
    axes.margins(y=0.25)
    axes.set_xlim(0, 1.3 * max((where for _, where in points), default=1.0))
    axes.grid(alpha=0.3)
    _name_points(axes, named)


# Where a point's name may stand: its offset in points and alignment.
SIDES = (((6, 6), "left", "bottom"), ((6, -6), "left", "top"), ((-6, 6), "right", "bottom"), ((-6, -6), "right", "top"))
# Points closer than this share of both axes would have their names in one place.
NEAR = (0.25, 0.08)


def _name_points(axes: "Axes", points: list[tuple[str, float, float]]) -> None:
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
    kept = [set(block.layers) <= set(plan.scheme.high) for block in shown]
    axes.barh(
        [_short(block.block) for block in shown], [max(block.loss, 1e-9) for block in shown],
        color=["#bbbbbb" if one else COLOURS.get(kind, "#777777") for one in kept],
    )  # fmt: skip
    axes.tick_params(labelsize=7)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.set_title(f"{plan.graph}, {plan.scheme.name}: the worst blocks", fontsize=9)
    axes.set_xlabel("loss when it alone is quantised (grey: kept high)", fontsize=8)


def _short(block: str) -> str:
    return block if len(block) <= 28 else "..." + block[-25:]


def _floor(report: Report) -> float | None:
    first = report.trials[0]
    if first.miou is not None and report.budget.miou is not None:
        return first.miou - report.budget.miou
    if first.miou is None and report.budget.disagreement is not None:
        return 100 - report.budget.disagreement
    return None


def _choice(report: Report) -> str:
    first, chosen = report.trials[0], report.chosen
    limits = [f"{name}={value:g}" for name, value in msgspec.structs.asdict(report.budget).items() if value is not None]
    if chosen == first or not chosen.seconds or not first.seconds:
        return f"{chosen.precision} is the fastest within {', '.join(limits)}"
    gain = first.seconds / chosen.seconds
    return f"{chosen.precision} is the fastest within {', '.join(limits)}: {gain:.2f} x float32"


def _page(report: Report) -> list[str]:
    rows = table(report)
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [
        f"# {report.bundle} in lower precision",
        "",
        f"Ranges: {report.images}. Tried on: {report.tried_on}.",
        "",
        head,
        "|" + "---|" * len(rows[0]),
        *body,
        "",
        "`*` no other one is both faster and better; `<-` chosen. " + _choice(report) + ".",
        "",
        *[f"- {note}" for note in report.notes],
        "",
        "![Quality against time and size](calibration.png)",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
