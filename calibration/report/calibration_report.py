"""What a calibration found, as a table, a picture and files to keep."""

from pathlib import Path

import msgspec

from vocabseg.calibration.report.trade_off import plot
from vocabseg.calibration.search.schemes import GraphPlan
from vocabseg.calibration.trials.accuracy_budget import AccuracyBudget, pareto
from vocabseg.calibration.trials.precision_trials import Trial
from vocabseg.runtime.files import atomic_write

HEADINGS = (
    "", "precision", "engine", "mIoU", "seen", "unseen", "cosine", "worst", "agreement", "ms/image", "MB", "size"
)  # fmt: skip


class CalibrationReport(msgspec.Struct, frozen=True):
    """Everything that a calibration found; written as calibration.json.

    Attributes:
        bundle: its name; `images`: what the ranges come from; `tried_on`: what the trials ran on.
        trials: a line of the table each, float32 first.
        chosen: the precision that was chosen within `budget`.
        plans: by precision and graph, how it was quantised, and what was tried.
        notes: what was decided on the way, in words.
    """

    bundle: str
    images: str
    tried_on: str
    budget: AccuracyBudget
    trials: list[Trial]
    chosen: Trial
    plans: dict[str, dict[str, GraphPlan]]
    notes: list[str]

    @property
    def choice(self) -> str:
        """The chosen precision, in words."""
        first, chosen = self.trials[0], self.chosen
        text = f"{chosen.precision} is the fastest within {self.budget.limits()}"
        if chosen == first or not chosen.seconds or not first.seconds:
            return text
        return f"{text}: {first.seconds / chosen.seconds:.2f} x float32"


def table(report: CalibrationReport) -> list[list[str]]:
    """Rows of text, the headings first; a star marks the Pareto front, an arrow the chosen precision."""
    front = pareto(report.trials)
    rows = [list(HEADINGS)]
    for trial in report.trials:
        mark = ("*" if trial in front else "") + (" <-" if trial == report.chosen else "")
        rows.append(
            [
                mark.strip(),
                trial.precision,
                trial.engine,
                *("-" if value is None else f"{value:.2f}" for value in (trial.miou, trial.seen, trial.unseen)),
                f"{trial.cosine:.5f}",
                f"{trial.worst:.4f}",
                f"{trial.agreement:.2f} %",
                "(needs a GPU)" if trial.seconds is None else f"{1000 * trial.seconds:.0f}",
                f"{trial.bytes / 1e6:.1f}",
                f"{100 * trial.bytes / max(report.trials[0].bytes, 1):.0f} %",
            ]
        )
    return rows


def lines(report: CalibrationReport) -> list[str]:
    """The table as aligned text, with what its marks mean and what was chosen."""
    return [*aligned(table(report)), "* no other one is both faster and better", *report.notes, report.choice]


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of text as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def markdown(rows: list[list[str]]) -> list[str]:
    """Rows of text, the headings first, as lines of a table in Markdown."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|" + "---|" * len(rows[0]), *body]


def report_files(folder: Path) -> list[Path]:
    """calibration.json, calibration.md and calibration.png in `folder`."""
    return [folder / f"calibration.{suffix}" for suffix in ("json", "md", "png")]


def write_report(report: CalibrationReport, folder: Path) -> list[Path]:
    """Write `report_files`; returns them. Raises OutputError."""
    data, page, picture = report_files(folder)
    with atomic_write(data) as file:
        file.write(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    with atomic_write(page) as file:
        file.write(_page(report).encode())
    plot(report, picture)
    return [data, page, picture]


def _page(report: CalibrationReport) -> str:
    text = [
        f"# {report.bundle} in lower precision",
        "",
        f"Ranges: {report.images}. Tried on: {report.tried_on}.",
        "",
        *markdown(table(report)),
        "",
        f"`*` no other one is both faster and better; `<-` chosen. {report.choice}.",
        "",
        *[f"- {note}" for note in report.notes],
        "",
        "![Quality against time and size](calibration.png)",
    ]
    return "\n".join(text) + "\n"
