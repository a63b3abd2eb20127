"""A benchmark's pictures, as SVG text that stands inside the page."""

import io
import re
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.benchmarks.page.tables import product_unit, seconds
from vocabseg.benchmarks.speed.results import BenchmarkReport, Check, VariantResult, stage_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777", "#000000")
MARKERS = "os^Dv<>P"
INK, PALE = "#444444", "#dddddd"
WIDTH = 9.0  # inches of every picture
# A smaller share of a tolerance is drawn as this one, because the axis is logarithmic.
LEAST_SHARE = 1e-4
# Runs of one image that are drawn: more could not be told apart, and would make the page large.
POINTS = 60


def waterfall(variants: Sequence[VariantResult]) -> str:
    """Where the time goes: per variant every stage's median, each beginning where the one before ends."""
    heights = [max(1, len(variant.stages)) for variant in variants]
    figure = _figure(0.5 + sum(0.24 * height + 0.35 for height in heights))
    grid = np.atleast_1d(figure.subplots(len(variants), 1, sharex=True, height_ratios=heights))
    whole = max(sum(timing.p50 for timing in variant.stages.values()) for variant in variants)
    for axes, variant, colour in zip(grid, variants, cycle(COLOURS), strict=False):
        names = sorted(variant.stages, key=stage_place)
        spans = [1e3 * variant.stages[name].p50 for name in names]
        starts = np.concatenate([[0], np.cumsum(spans)[:-1]])
        axes.barh(names, spans, left=starts, color=colour, height=0.72)
        for row, (start, span) in enumerate(zip(starts, spans, strict=True)):
            axes.annotate(
                seconds(span / 1e3), (start + span, row), (4, 0), textcoords="offset points", va="center", fontsize=7.5,
                color=INK,
            )  # fmt: skip
        axes.invert_yaxis()
        axes.set_title(variant.name, fontsize=9, loc="left", color=colour)
        axes.set_xlim(0, 1150 * whole)
    grid[-1].set_xlabel("milliseconds from the image file, medians", fontsize=8.5)
    return _svg(figure)


def distribution(report: BenchmarkReport, variants: Sequence[VariantResult]) -> str:
    """Every measured run from file to labels; a marker's shape is its image, a line marks the median."""
    figure = _figure(0.9 + 0.5 * len(variants))
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    for row, (variant, colour) in enumerate(zip(variants, cycle(COLOURS), strict=False)):
        if variant.total is None:
            continue
        times, images = 1e3 * np.asarray(variant.total.seconds), np.asarray(variant.total.images)
        for image in np.unique(images):
            own = times[images == image]
            own = own[:: max(1, -(-len(own) // POINTS))]
            rows = row + jitter.uniform(-0.2, 0.2, len(own))
            axes.scatter(own, rows, s=22, color=colour, alpha=0.65, linewidths=0, marker=MARKERS[image % len(MARKERS)])
        axes.vlines(1e3 * variant.total.p50, row - 0.32, row + 0.32, color=INK, linewidth=1.4)
    axes.set_yticks(range(len(variants)), [variant.name for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds from the image file to its labels", fontsize=8.5)
    shown = report.images[: len(MARKERS)]
    handles = [_marker(MARKERS[index % len(MARKERS)], info.name) for index, info in enumerate(shown)]
    axes.legend(handles=handles, fontsize=7.5, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def roofline(report: BenchmarkReport, variants: Sequence[VariantResult]) -> str:
    """Operations per byte and per second of every stage, under the roof that this machine has."""
    figure = _figure(4.6)
    axes = figure.subplots()
    points: list[tuple[str, str, str, float, float]] = []
    for variant, colour, marker in zip(variants, cycle(COLOURS), cycle(MARKERS), strict=False):
        for line in variant.roof:
            if line.operations > 0 and line.bytes > 0 and line.seconds > 0:
                rate = line.operations / line.seconds
                points.append((line.stage, colour, marker, line.operations / line.bytes, rate))
    intensities = [point[3] for point in points] or [1.0]
    left, right = min([*intensities, 1.0]) / 3, max([*intensities, 100.0]) * 3
    across = np.geomspace(left, right, 200)
    precisions = sorted({variant.precision for variant in variants} & set(report.peaks.products))
    for precision, style in zip(precisions, ("-", "--", ":", "-."), strict=False):
        roof = np.minimum(report.peaks.products[precision], across * report.peaks.copy)
        axes.plot(across, roof, color=INK, linewidth=1.3, linestyle=style, zorder=1)
        name = f"{report.peaks.products[precision] / 1e9:.0f} G{product_unit(precision)} {precision}"
        axes.annotate(
            name, (right, roof[-1]), (-4, 4),
            textcoords="offset points", ha="right", fontsize=8, color=INK,
        )  # fmt: skip
    named: set[str] = set()
    above = False  # neighbours are named below and above in turn, so that their names do not meet
    for stage, colour, marker, intensity, rate in sorted(points, key=lambda point: point[3]):
        axes.scatter(intensity, rate, s=34, color=colour, marker=marker, alpha=0.85, linewidths=0, zorder=2)
        if stage not in named:
            named.add(stage)
            place = (5, 6) if above else (5, -11)
            axes.annotate(stage, (intensity, rate), place, textcoords="offset points", fontsize=7.5, color=INK)
            above = not above
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_xlabel("operations per byte that must be moved", fontsize=8.5)
    axes.set_ylabel("operations per second", fontsize=8.5)
    handles = [
        _marker(marker, variant.name, colour)
        for variant, colour, marker in zip(variants, cycle(COLOURS), cycle(MARKERS), strict=False)
    ]
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="lower right")
    return _svg(figure)


def parity_bars(variants: Sequence[VariantResult]) -> str:
    """How much of each tolerance is used up; beyond the line the contract is broken."""
    compared = [
        (variant.name, variant.parity.checks, colour)
        for variant, colour in zip(variants, cycle(COLOURS), strict=False)
        if variant.parity is not None
    ]
    rows: dict[tuple[str, str], dict[str, Check]] = {}
    for name, checks, _ in compared:
        for check in checks:
            rows.setdefault((check.stage, check.what), {})[name] = check
    rows = {row: found for row, found in rows.items() if any(check.limit is not None for check in found.values())}
    figure = _figure(0.9 + len(rows) * (0.14 + 0.17 * len(compared)))
    axes = figure.subplots()
    thick = 0.8 / max(1, len(compared))
    furthest = 10.0
    for index, (name, _, colour) in enumerate(compared):
        for row, found in enumerate(rows.values()):
            own = found.get(name)
            if own is None or own.limit is None:
                continue
            used = tolerance_used(own)
            place = row - 0.4 + thick * (index + 0.5)
            length = min(max(used, LEAST_SHARE), 1e4)
            furthest = max(furthest, 4 * length)
            hatch = None if own.passed else "////"
            axes.barh(place, length - LEAST_SHARE, left=LEAST_SHARE, height=0.9 * thick, color=colour, hatch=hatch,
                      edgecolor="white" if hatch else colour, linewidth=0)  # fmt: skip
            text = _used(used) + ("" if own.passed else " BROKEN")
            axes.annotate(text, (length, place), (4, 0), textcoords="offset points", va="center", fontsize=7, color=INK)
    axes.axvline(1, color="#cc0000", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlim(LEAST_SHARE, furthest)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [f"{stage}: {what}" for stage, what in rows])
    axes.set_xlabel("share of the tolerance that is used up", fontsize=8.5)
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["0.01 %", "0.1 %", "1 %", "10 %", "all"])
    axes.minorticks_off()
    handles = [_marker("s", name, colour) for name, _, colour in compared]
    axes.legend(handles=handles, fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def _used(share: float) -> str:
    if share == 0:
        return "none"
    if share < LEAST_SHARE:
        return "< 0.01 %"
    return f"{100 * share:.2g} %" if share < 0.995 else f"{share:.3g} times"


def tolerance_used(check: Check) -> float:
    """Share of the tolerance that a figure uses up, 1 at the limit; a limit of 0 allows nothing: 0, or very much."""
    limit = check.limit or 0.0
    if check.least:  # cosines and shares: what is missing to 1
        return max(0.0, 1.0 - check.value) / (1.0 - limit) if limit < 1 else (0.0 if check.value >= 1 else 1e4)
    if limit == 0:
        return 0.0 if check.value == 0 else 1e4
    return max(0.0, check.value) / limit


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _marker(marker: str, label: str, colour: str = INK) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker=marker, color=colour, linestyle="none", markersize=5, label=label.replace("$", r"\$"))


def _svg(figure: "Figure") -> str:
    """The figure as an element of a page: no prolog, no metadata, no addresses but the namespaces."""
    import matplotlib

    for axes in figure.axes:
        _tidy(axes)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "vocabseg"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for size in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", text, count=1)
    return text


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(labelsize=8, color=PALE)
    axes.grid(axis="x", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
