"""The worst and best images side by side: photo, truth, prediction, and which class is which colour."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vocabseg.benchmarks.accuracy.evaluate import Evaluation, Example
from vocabseg.benchmarks.accuracy.plots import DPI, MUTED, save_figure, short_name
from vocabseg.runtime.images import load_image
from vocabseg.runtime.result.colours import class_colours
from vocabseg.runtime.result.picture import draw_overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Longer side of a picture in pixels, and how much of the class colour covers the photo.
LONGEST, OPACITY = 420, 0.78
# Inches of one line of a row's list of classes.
LINE = 0.2
# Inches: the width of a picture, and the height that a row's title needs.
CELL, TITLE = 3.1, 0.32


def plot_examples(evaluation: Evaluation, path: Path) -> None:
    """One row per image; a class has the same colour in all of them."""
    from matplotlib.figure import Figure

    rows = [("worst", example) for example in evaluation.worst] + [("best", example) for example in evaluation.best]
    heights = [CELL * min(1.15, max(0.45, example.truth.shape[0] / example.truth.shape[1])) for _, example in rows]
    size = (3 * CELL + 2.9, sum(heights) + TITLE * len(rows) + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    ratios = [height + TITLE for height in heights]
    grid = figure.subplots(len(rows), 4, squeeze=False, width_ratios=[1, 1, 1, 0.9], height_ratios=ratios)
    for axes, (kind, example), height in zip(grid, rows, heights, strict=True):
        _row(axes, evaluation, kind, example, int(height / LINE) - 1)
    for axes, title in zip(grid[0], ("image", "truth", "prediction", "% of the pixels"), strict=True):
        # All at the height of the first picture: the list beside it is taller.
        coordinates = (axes.transAxes, grid[0][0].transAxes)
        axes.annotate(title, (0.5, 1), (0, 24), coordinates, "offset points", ha="center", fontsize=11)
    save_figure(figure, path)


def _row(axes: "np.ndarray", evaluation: Evaluation, kind: str, example: Example, lines: int) -> None:
    classes = evaluation.accuracy.classes
    step = max(1, -(-max(example.truth.shape) // LONGEST))
    truth = np.where(example.truth == evaluation.ignore_index, -1, example.truth.astype(np.int64))
    maps = (truth, example.labels.astype(np.int64))
    shares = [np.bincount(labels[labels >= 0], minlength=len(classes)) / labels.size for labels in maps]
    order = np.argsort(-np.maximum(*shares), kind="stable")
    present = [index for index in order.tolist() if shares[0][index] or shares[1][index]]
    image = np.ascontiguousarray(load_image(example.image)[::step, ::step])
    pictures = [image] + [
        draw_overlay(labels[::step, ::step], classes, image, legend=False, opacity=OPACITY) for labels in maps
    ]
    for part, picture in zip(axes, pictures, strict=False):
        part.imshow(picture, interpolation="nearest")
        part.set_xticks([])
        part.set_yticks([])
    axes[0].set_title(f"{kind}: {example.image.stem}", fontsize=8.5, loc="left")
    axes[2].set_title(f"mIoU {example.miou:.1f} %", fontsize=8.5, loc="right")
    _legend(axes[3], evaluation, present, shares, lines)


def _legend(axes: "Axes", evaluation: Evaluation, present: list[int], shares: list[np.ndarray], lines: int) -> None:
    """The classes with the most pixels, their colours, and their shares of truth and prediction."""
    from matplotlib.patches import Rectangle

    accuracy = evaluation.accuracy
    colours = class_colours(len(accuracy.classes))
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(lines + 0.5, -0.5)
    axes.text(0.8, 0, "truth", fontsize=7.5, ha="right", va="center", color=MUTED)
    axes.text(1.0, 0, "found", fontsize=7.5, ha="right", va="center", color=MUTED)
    named = present if len(present) < lines else present[: max(1, lines - 1)]
    unseen = [accuracy.unseen(index) for index in named]
    for place, (index, starred) in enumerate(zip(named, unseen, strict=True), start=1):
        axes.add_patch(Rectangle((0, place - 0.32), 0.05, 0.64, color=colours[index] / 255))
        name = short_name(accuracy.classes[index], 24)
        axes.text(0.08, place, name + (" *" if starred else ""), fontsize=8, va="center")
        for right, share in zip((0.8, 1.0), shares, strict=True):
            text = f"{100 * share[index]:.0f}" if share[index] else "-"
            axes.text(right, place, text, fontsize=8, ha="right", va="center")
    notes = [f"and {len(present) - len(named)} more"] if len(present) > len(named) else []
    if any(unseen):
        notes.append("* unseen in training")
    axes.text(0, len(named) + 1, "; ".join(notes), fontsize=7, color=MUTED, va="center")
