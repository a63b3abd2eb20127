"""The summary's pictures: how often each class occurs, and images from all over the run with what was found."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.batch.inputs.items import Item
from vocabseg.batch.shard import IMAGES, MASKS, committed, shard_folder
from vocabseg.batch.shard_plan import planned_shards, read_shard
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.files import atomic_write
from vocabseg.runtime.progress import counted
from vocabseg.runtime.result.picture import draw_overlay

if TYPE_CHECKING:
    from vocabseg.batch.summary import Frequencies

DPI = 110
# Bars in the plot, and classes named below the contact sheet.
BARS, NAMED = 50, 16
# Images in the contact sheet, pairs in a row, and the longer side of each in pixels.
IMAGES_SHOWN, PAIRS, LONGEST = 20, 4, 320
OPACITY = 0.65
BLUE, MUTED = "#0072b2", "#777777"
NAME_LENGTH = 28


def plot_frequencies(found: "Frequencies", path: Path) -> None:
    """A bar per class for its share of the pixels, with the number of images beside it; the most frequent BARS only."""
    from matplotlib.figure import Figure

    order = [index for index in found.order if found.pixels[index]]
    shown = order[:BARS]
    figure = Figure(figsize=(8, 1.3 + 0.21 * max(4, len(shown))), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, 1)
    places = np.arange(len(shown))
    shares = [found.share(index) for index in shown]
    axes.barh(places, shares, color=BLUE, height=0.72)
    axes.set_yticks(places, [_short(found.classes[index]) for index in shown], fontsize=8)
    widest = max(shares, default=1.0)
    for place, (index, share) in enumerate(zip(shown, shares, strict=True)):
        count = found.occurrences[index]
        text = f"{share:.2g} %, {counted(count, 'image')}"
        axes.text(share + 0.01 * widest, place, text, va="center", fontsize=7.5, color=MUTED)
    axes.set_ylim(max(4, len(shown)) - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * widest)
    axes.set_xlabel("share of the pixels, %", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    rest = f", {len(shown)} most frequent shown" if len(order) > len(shown) else ""
    title = f"{counted(found.images, 'image')}: {len(order)} of {len(found.classes)} classes occur{rest}"
    axes.set_title(title, fontsize=10, loc="left")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def contact_sheet(output: Path, found: "Frequencies", path: Path) -> None:
    """Images from all over the run, each beside its overlay; a colour stands for the same class in all of them."""
    from matplotlib.figure import Figure

    cells = [cell for item in _chosen(output) if (cell := _cell(output, found, *item)) is not None]
    rows = max(1, -(-len(cells) // PAIRS))
    present = {index for _, _, _, indices in cells for index in indices}
    named = [index for index in found.order if index in present][:NAMED]
    tallest = max((picture.shape[0] / (2 * picture.shape[1]) for _, picture, _, _ in cells), default=0.4)
    foot = 0.45 + 0.24 * -(-max(1, len(named)) // 4)
    columns = min(PAIRS, max(1, len(cells)))
    size = (4.1 * columns, (4.1 * min(0.8, tallest) + 0.3) * rows + foot)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, (item, picture, overlay, _) in zip(grid, cells, strict=False):
        gap = np.full((picture.shape[0], 4, 3), 255, np.uint8)
        axes.imshow(np.concatenate([picture, gap, overlay], axis=1), interpolation="nearest")
        axes.set_title(_short(item.id.rpartition("/")[2], 48), fontsize=7.5, loc="left", pad=2)
    _legend(figure, found, named, len(present))
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _legend(figure: Any, found: "Frequencies", named: list[int], present: int) -> None:
    from matplotlib.patches import Patch

    colours = found.categories.palette(len(found.classes)) / 255
    handles = [Patch(color=colours[index], label=_short(found.classes[index])) for index in named]
    if present > len(named):
        handles.append(Patch(alpha=0, label=f"and {present - len(named)} more"))
    figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=8, frameon=False)


def _chosen(output: Path) -> list[tuple[int, Item]]:
    """Images spread evenly over the committed shards, and over each of them, with the number of their shard."""
    numbers = list(committed(output))
    there = set(numbers)
    planned = [shard for shard in planned_shards(output) if shard.number in there]
    total = sum(shard.images for shard in planned)
    wanted = {(2 * k + 1) * total // (2 * IMAGES_SHOWN) for k in range(IMAGES_SHOWN)}
    chosen = []
    start = 0
    for shard in planned:
        here = sorted(place - start for place in wanted if start <= place < start + shard.images)
        if here:
            items = read_shard(output, shard)
            chosen += [(shard.number, items[place]) for place in here]
        start += shard.images
    return chosen


def _cell(
    output: Path, found: "Frequencies", number: int, item: Item
) -> tuple[Item, np.ndarray, np.ndarray, list[int]] | None:
    """An image and its overlay, made smaller, and the classes in it; None if it is broken or has gone."""
    import cv2

    from vocabseg.runtime.images import load_image

    labels = _labels(output, number, item)
    if labels is None:
        return None
    try:
        image = load_image(item.read())
    except (ImageError, OSError):
        return None
    if image.shape[:2] != labels.shape:
        return None
    factor = min(1.0, LONGEST / max(labels.shape))
    size = (max(1, round(labels.shape[1] * factor)), max(1, round(labels.shape[0] * factor)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = cv2.resize(labels.astype(np.float32), size, interpolation=cv2.INTER_NEAREST).astype(np.int32)
    colours = found.categories.palette(len(found.classes))
    overlay = draw_overlay(small, list(found.classes), image, legend=False, opacity=OPACITY, colours=colours)
    return item, image, overlay, np.unique(labels[labels >= 0]).tolist()


def _labels(output: Path, number: int, item: Item) -> np.ndarray | None:
    """The labels (H, W) int32 that were written for an image, from its PNG or its run lengths."""
    from PIL import Image
    from pyarrow.parquet import read_table

    folder = output / shard_folder(number)
    condition: Any = [("id", "=", item.id)]
    rows = read_table(folder / IMAGES, filters=condition, partitioning=None).to_pylist()
    if not rows:
        return None
    if rows[0]["labels"] is not None:
        with Image.open(output / rows[0]["labels"]) as picture:
            return np.asarray(picture).astype(np.int32)
    from pycocotools.mask import decode

    labels = np.full((rows[0]["height"], rows[0]["width"]), -1, np.int32)
    for mask in read_table(folder / MASKS, filters=condition, partitioning=None).to_pylist():
        inside = decode({"size": [mask["height"], mask["width"]], "counts": mask["counts"].encode()})
        labels[inside.astype(bool)] = mask["class_index"]
    return labels


def _short(text: str, length: int = NAME_LENGTH) -> str:
    text = text if len(text) <= length else text[: length - 1].rstrip(" ,") + "…"
    return text.replace("$", r"\$")
