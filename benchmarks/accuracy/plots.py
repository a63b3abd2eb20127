"""Pictures of per-class results: bars and the confusion matrix."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vocabseg.benchmarks.accuracy.evaluate import Accuracy
from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix, SemanticMetrics
from vocabseg.runtime.files import atomic_write
from vocabseg.runtime.progress import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue, vermilion and grey, which colour-blind readers can tell apart.
SEEN, UNSEEN, MUTED = "#0072b2", "#d55e00", "#777777"
DPI = 110
# Bars in one column, and columns beside each other, before the middle of the ranking is left out.
ROWS, COLUMNS = 60, 4
# With fewer classes than this, a picture of how their IoUs are distributed says nothing new.
HISTOGRAM_CLASSES = 20
# Classes of a confusion matrix, before only the most confused ones are shown.
MATRIX_CLASSES = 30


def plot_classes(accuracy: Accuracy, path: Path) -> None:
    """Bars of IoU, best class first, and how they are distributed; with very many classes the best and the worst."""
    from matplotlib.figure import Figure

    metrics = _semantic(accuracy)
    ranked = sorted(
        (index for index, value in enumerate(metrics.iou) if value is not None),
        key=lambda index: -(metrics.iou[index] or 0),
    )
    if not ranked:
        raise ValueError("no class occurs in the truth: there is nothing to draw")
    shown, left_out = ranked, 0
    if len(ranked) > ROWS * COLUMNS:
        kept = ROWS * COLUMNS // 2
        shown, left_out = ranked[:kept] + ranked[-kept:], len(ranked) - 2 * kept
    columns = -(-len(shown) // ROWS)
    rows = -(-len(shown) // columns)
    body = 0.4 + 0.19 * rows
    head = 2.6 if len(ranked) >= HISTOGRAM_CLASSES else 0.6
    figure = Figure(figsize=(max(7.5, 4.1 * columns), head + body), dpi=DPI, layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[head, body]))
    _head(top.subplots(1, 1), accuracy, metrics, ranked)
    axes = bottom.subplots(1, columns, squeeze=False)[0]
    for column, part in enumerate(axes):
        _bars(part, accuracy, metrics, shown[column * rows : (column + 1) * rows], column * rows, left_out, rows)
    half = len(shown) // 2
    note = f"; ranks {half + 1} to {half + left_out} are left out" if left_out else ""
    bottom.supxlabel(f"IoU of each class, %{note}", fontsize=9)
    save_figure(figure, path)


def _head(axes: "Axes", accuracy: Accuracy, metrics: SemanticMetrics, ranked: list[int]) -> None:
    """Title and legend, and how many classes have which IoU where there are enough of them."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    groups = _groups(accuracy, ranked)
    handles = []
    for name, colour, members in groups:
        figure = _group_miou(metrics, name)
        text = f"{name}, {len(members)} classes: mIoU {'-' if figure is None else f'{figure:.1f}'}"
        handles.append(Patch(color=colour, label=text))
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="upper left", ncols=len(groups))
    source = accuracy.source
    title = f"{source.get('model', 'model')} on {accuracy.dataset}: mIoU {metrics.miou or 0:.2f}"
    title += f" over {counted(accuracy.images, 'image')} ({source.get('engine', 'unknown engine')})"
    axes.set_title(title, fontsize=10, loc="left")
    if len(ranked) < HISTOGRAM_CLASSES:
        axes.axis("off")
        return
    values = [[metrics.iou[index] or 0.0 for index in members] for _, _, members in groups]
    colours = [colour for _, colour, _ in groups]
    axes.hist(values, bins=list(range(0, 101, 5)), stacked=True, color=colours, edgecolor="white")
    for name, colour, _ in groups:
        figure = _group_miou(metrics, name)
        if figure is not None:
            axes.axvline(figure, ymax=0.82, color=colour, linestyle="--", linewidth=1.2)
    axes.set_xlim(0, 100)
    axes.set_xlabel("IoU, %", fontsize=9)
    axes.set_ylabel("classes", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.28)


def _group_miou(metrics: SemanticMetrics, name: str) -> float | None:
    base = metrics.sets.get("base")
    if name == "all" or base is None:
        return metrics.miou
    return base.miou if name == "seen" else base.complement_miou


def _groups(accuracy: Accuracy, indices: list[int]) -> list[tuple[str, str, list[int]]]:
    """Name, colour and members of the groups that the bars are coloured by; empty groups are left out."""
    if not accuracy.split:
        return [("all", SEEN, indices)]
    seen = [index for index in indices if not accuracy.unseen(index)]
    unseen = [index for index in indices if accuracy.unseen(index)]
    return [group for group in (("seen", SEEN, seen), ("unseen", UNSEEN, unseen)) if group[2]]


def _bars(
    axes: "Axes", accuracy: Accuracy, metrics: SemanticMetrics, indices: list[int], start: int, left_out: int, rows: int
) -> None:
    places = np.arange(len(indices))
    values = [metrics.iou[index] or 0.0 for index in indices]
    unseen = [accuracy.unseen(index) for index in indices]
    axes.barh(places, values, color=[UNSEEN if flag else SEEN for flag in unseen], height=0.72)
    half = ROWS * COLUMNS // 2
    names = []
    for offset, index in enumerate(indices):
        rank = start + offset + 1
        names.append(f"{short_name(accuracy.classes[index])}  {rank if rank <= half else rank + left_out}")
    axes.set_yticks(places, names, fontsize=7.5)
    for label, flag in zip(axes.get_yticklabels(), unseen, strict=True):
        label.set_color(UNSEEN if flag else "black")
    for place, value in zip(places, values, strict=True):
        text = axes.text(value + 1, float(place), f"{value:.1f}", va="center", fontsize=7, color=MUTED)
        text.set_in_layout(False)  # it lies within the axes; measuring hundreds of texts takes seconds
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def plot_confusion(accuracy: Accuracy, matrix: ConfusionMatrix, path: Path) -> None:
    """Where the pixels of each true class went, in percent; with many classes, those that are confused most."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    pixels = matrix.counts[:-1, :-1].T  # (true, predicted)
    involved = np.flatnonzero(pixels.sum(0) + pixels.sum(1) > 0)
    chosen = involved
    if len(involved) > MATRIX_CLASSES:
        wrong = pixels - np.diag(np.diag(pixels))
        share = wrong / np.maximum(pixels.sum(1, keepdims=True), 1)
        # Classes that lose much of themselves, or take much of others, weighted by how much there is of them.
        weight = np.sqrt(wrong.sum(1)) * share.sum(1) + np.sqrt(wrong.sum(0))
        chosen = np.sort(np.argsort(-weight, kind="stable")[:MATRIX_CLASSES])
    others = len(involved) - len(chosen)
    shares = pixels[np.ix_(chosen, chosen)].astype(float)
    names = [short_name(accuracy.classes[index]) for index in chosen]
    columns = list(names)
    totals = matrix.counts[:, :-1].sum(0)[chosen].astype(float)
    if others:
        shares = np.column_stack([shares, totals - shares.sum(1)])
        columns.append(f"{others} others")
    shares = 100 * shares / np.maximum(totals, 1)[:, None]
    side = max(5.5, 0.36 * len(columns))
    figure = Figure(figsize=(side + 2.6, side + 2.2), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, 1)
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto")
    _write_cells(axes, shares, chosen)
    axes.set_xticks(np.arange(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    rows = [name if total else f"{name} (absent)" for name, total in zip(names, totals, strict=True)]
    axes.set_yticks(np.arange(len(rows)), rows, fontsize=8)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, index in zip(labels, chosen.tolist(), strict=False):
            label.set_color(UNSEEN if accuracy.unseen(index) else "black")
    axes.set_xlabel("predicted class", fontsize=10)
    axes.set_ylabel("true class", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    what = f"the {len(chosen)} most confused of {len(involved)} classes" if others else f"{len(chosen)} classes"
    note = "; unseen classes in orange" if accuracy.split else ""
    figure.suptitle(
        f"{accuracy.dataset}: what the pixels of each true class were taken for\n"
        f"% of the true class ({what}{note}; shares under 1 % are not written)",
        fontsize=10,
    )
    save_figure(figure, path)


def _write_cells(axes: "Axes", shares: np.ndarray, chosen: np.ndarray) -> None:
    for row in range(shares.shape[0]):
        for column in range(shares.shape[1]):
            value = shares[row, column]
            if value >= 1:
                colour = "white" if value > 35 else "black"
                weight = "bold" if row == column else "normal"
                text = f"{value:.0f}"
                cell = axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour, weight=weight)
                cell.set_in_layout(False)


def _semantic(accuracy: Accuracy) -> SemanticMetrics:
    if accuracy.semantic is None:
        raise ValueError("there are no semantic metrics to draw")
    return accuracy.semantic


def short_name(name: str, length: int = 26) -> str:
    """A class name of at most so many characters; a dollar sign, which would start a formula, is escaped."""
    name = name if len(name) <= length else name[: length - 1].rstrip(" ,") + "…"
    return name.replace("$", r"\$")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
