"""What region budgets cost and save, as a table, a picture and files; and the chosen one, put into the bundle."""

from importlib.metadata import version
from pathlib import Path

import msgspec

from vocabseg.calibration.report.calibration_report import markdown
from vocabseg.calibration.report.trade_off import DPI, floor, name_points
from vocabseg.calibration.trials.accuracy_budget import AccuracyBudget, quality
from vocabseg.calibration.trials.region_trials import PAIRED, RegionTrial, with_budget
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import write_manifest
from vocabseg.runtime.files import atomic_write

HEADINGS = ("", "region budget", "regions", "crops", "fewer", "agreement", "mIoU", "ms/image", "faster")
# The picture's lines: a name, the key that varies, and the others.
LINES: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("share_iou", "share_iou", {}),
    ("min_objectness", "min_objectness", {}),
    *((f"share_iou, min_objectness {least:g}", "share_iou", {"min_objectness": least}) for least in PAIRED),
)
COLOURS = ("#0072b2", "#d55e00", "#56b4e9", "#009e73")


class RegionReport(msgspec.Struct, frozen=True):
    """What a choice among region budgets found; written as regions.json.

    Attributes:
        bundle: its name; `tried_on`: the images.
        allowed: what might be lost.
        trials: a line of the table each, the published method first.
        chosen: the one of the fewest crops within `allowed`.
    """

    bundle: str
    tried_on: str
    allowed: AccuracyBudget
    trials: list[RegionTrial]
    chosen: RegionTrial

    @property
    def choice(self) -> str:
        """The chosen budget, in words."""
        first, chosen = self.trials[0], self.chosen
        if chosen == first:
            return f"no region budget is within {self.allowed.limits()}: the published method stays"
        fewer, faster = first.crops / chosen.crops, first.seconds / chosen.seconds
        text = f"{chosen.name} has the fewest crops within {self.allowed.limits()}"
        return f"{text}: {fewer:.2f} times fewer, {faster:.2f} x as fast"


def install(report: RegionReport, bundle: Bundle) -> None:
    """Put the chosen budget into the bundle's manifest, with the evidence for it. Raises OutputError."""
    manifest, first, chosen = bundle.manifest, report.trials[0], report.chosen
    evidence = {
        "budget": chosen.budget,
        "crops_per_image": {"without": first.crops, "with": chosen.crops},
        "disagreement_percent": 100 - chosen.agreement,
        "miou": None if first.miou is None else {"without": first.miou, "with": chosen.miou},
        "images": chosen.images,
        "tried_on": report.tried_on,
        "chosen": f"the fewest crops within {report.allowed.limits()} of {len(report.trials)} budgets tried",
        "vocabseg": version("vocabseg"),
    }
    changed = msgspec.structs.replace(
        manifest,
        region=with_budget(manifest.region, chosen.budget),
        provenance={**manifest.provenance, "region_budget": evidence},
    )
    write_manifest(changed, bundle.folder)


def table(report: RegionReport) -> list[list[str]]:
    """Rows of text, the headings first; an arrow marks the chosen budget."""
    first, rows = report.trials[0], [list(HEADINGS)]
    for trial in report.trials:
        rows.append(
            [
                "<-" if trial == report.chosen else "",
                trial.name,
                f"{trial.regions:.1f}",
                f"{trial.crops:.1f}",
                f"{first.crops / max(trial.crops, 1e-9):.2f} x",
                f"{trial.agreement:.2f} %",
                "-" if trial.miou is None else f"{trial.miou:.2f}",
                f"{1000 * trial.seconds:.0f}",
                f"{first.seconds / trial.seconds:.2f} x",
            ]
        )
    return rows


def region_files(folder: Path) -> list[Path]:
    """regions.json, regions.md and regions.png in `folder`."""
    return [folder / f"regions.{suffix}" for suffix in ("json", "md", "png")]


def write_region_report(report: RegionReport, folder: Path) -> list[Path]:
    """Write `region_files`; returns them. Raises OutputError."""
    data, page, picture = region_files(folder)
    with atomic_write(data) as file:
        file.write(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    text = [f"# Region budgets of {report.bundle}", "", f"Tried on: {report.tried_on}.", "", *markdown(table(report))]
    text += ["", f"{report.choice}.", "", "![Quality against crops](regions.png)"]
    with atomic_write(page) as file:
        file.write(("\n".join(text) + "\n").encode())
    _plot(report, picture)
    return [data, page, picture]


def _plot(report: RegionReport, path: Path) -> None:
    """Quality against crops of an image, a line for each row of the grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    chosen, first = report.chosen, report.trials[0]
    for colour, (label, key, rest) in zip(COLOURS, LINES, strict=True):
        own = [trial for trial in report.trials if _on_line(trial, key, rest)]
        crops = [trial.crops for trial in own]
        axes.plot(crops, list(map(quality, own)), "o-", color=colour, linewidth=0.8, label=label, zorder=2)
    named = [("none", first.crops, quality(first))]
    named += [(f"{trial.budget[key]:g}", trial.crops, quality(trial)) for _, key, rest in LINES[:2]
              for trial in report.trials[1:] if _on_line(trial, key, rest)]  # fmt: skip
    axes.plot(first.crops, quality(first), "o", color="#000000", zorder=3)
    axes.plot(
        chosen.crops, quality(chosen), "o", markersize=13, markerfacecolor="none", color="#000000", label="chosen"
    )
    least = floor(first, report.allowed)
    if least is not None:
        axes.axhline(least, color="#999999", linewidth=0.8, linestyle=":", label=f"allowed: {report.allowed.limits()}")
    axes.set_ylabel("mIoU, %" if first.miou is not None else "pixels with the label of the published method, %")
    axes.set_xlabel("crops encoded per image")
    axes.margins(0.12)
    axes.set_xlim(0, 1.15 * first.crops)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    name_points(axes, named)
    figure.suptitle(f"{report.bundle}: {report.choice}".replace(": ", ":\n", 1), fontsize=10)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _on_line(trial: RegionTrial, key: str, rest: dict[str, float]) -> bool:
    """Whether a trial has the line's other keys, and that one or none."""
    others = {name: value for name, value in trial.budget.items() if name != key}
    return others == rest and (key in trial.budget or not rest)
