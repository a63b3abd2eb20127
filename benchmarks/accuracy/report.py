"""The report of an evaluation: JSON for programs, Markdown to read, PNG to look at."""

import contextlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from vocabseg.benchmarks.accuracy.evaluate import Accuracy, Evaluation
from vocabseg.benchmarks.accuracy.mask_ap import MaskMetrics
from vocabseg.benchmarks.accuracy.metrics import SemanticMetrics
from vocabseg.benchmarks.accuracy.panoptic_quality import PanopticMetrics
from vocabseg.benchmarks.writing import markdown_table
from vocabseg.runtime.bundle.sections import BUDGET
from vocabseg.runtime.doctor import processor
from vocabseg.runtime.files import atomic_write, make_folder
from vocabseg.runtime.progress import counted

JSON, MARKDOWN = "accuracy.json", "accuracy.md"
# Packages that the figures may depend on.
PACKAGES = ("vocabseg", "numpy", "pillow", "openvino", "onnxruntime", "tensorrt", "torch")
BARS, CONFUSION, EXAMPLES = "per_class.png", "confusion.png", "examples.png"
# The evaluation set of the classes seen in training, in every data set that has a split.
SEEN_SET = "base"


def write_report(
    evaluation: Evaluation, folder: str | Path, notify: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write the report's files into `folder`, which is made; returns them in the order in which to look at them.

    Without matplotlib the pictures are left out, and `notify` gets a line. Raises OutputError where nothing can be
    written.
    """
    folder = Path(folder)
    make_folder(folder)
    pictures: list[Path] = []
    if find_spec("matplotlib") is None:
        notify("no pictures: they need the package matplotlib (pip install 'vocabseg[benchmarks]')")
    else:
        pictures = _write_pictures(evaluation, folder)
    made = circumstances()
    text = to_markdown(evaluation.accuracy, [path.name for path in pictures], made)
    with atomic_write(folder / MARKDOWN) as file:
        file.write(text.encode())
    with atomic_write(folder / JSON) as file:
        content = {**msgspec.to_builtins(evaluation.accuracy), **made}
        file.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    return [folder / MARKDOWN, *pictures, folder / JSON]


def _write_pictures(evaluation: Evaluation, folder: Path) -> list[Path]:
    from vocabseg.benchmarks.accuracy.examples import plot_examples
    from vocabseg.benchmarks.accuracy.plots import plot_classes, plot_confusion

    accuracy = evaluation.accuracy
    written = []
    if accuracy.semantic is not None and evaluation.confusion is not None:
        plot_classes(accuracy, folder / BARS)
        plot_confusion(accuracy, evaluation.confusion, folder / CONFUSION)
        written += [folder / BARS, folder / CONFUSION]
    if evaluation.worst or evaluation.best:
        plot_examples(evaluation, folder / EXAMPLES)
        written.append(folder / EXAMPLES)
    return written


def circumstances() -> dict[str, Any]:
    """When and where the report is made: "date" (UTC), "machine", and "versions" by package."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": f"{processor()}, {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": versions,
    }


def to_markdown(accuracy: Accuracy, pictures: Sequence[str] = (), made: Mapping[str, Any] | None = None) -> str:
    """The report as Markdown; `pictures` are file names to show, `made` are `circumstances`."""
    source = accuracy.source
    measured = counted(accuracy.images, "image") + (f", {len(accuracy.broken)} left out" if accuracy.broken else "")
    parts = [
        f"# {source.get('model', 'model')} on {accuracy.dataset}",
        f"Engine {source.get('engine', 'unknown')}; {measured}; {len(accuracy.classes)} classes. Figures in percent.",
        *_crops(accuracy),
    ]
    if accuracy.semantic is not None:
        parts += _semantic(accuracy.semantic)
    if accuracy.panoptic is not None:
        parts += _panoptic(accuracy.panoptic)
    if accuracy.masks is not None:
        parts += _masks(accuracy.masks)
    parts += [f"![{name}]({name})" for name in pictures]
    parts += _confusions(accuracy)
    parts += _classes(accuracy)
    parts += _measured_with(accuracy, made or {})
    if accuracy.broken:
        rows = [[image, reason] for image, reason in accuracy.broken.items()]
        parts += ["## Images left out", markdown_table(["image", "why"], rows)]
    return "\n\n".join(parts) + "\n"


def summary_lines(accuracy: Accuracy) -> list[str]:
    """The main figures, one line each, for a terminal."""
    lines = []
    if accuracy.semantic is not None:
        metrics = accuracy.semantic
        lines.append(
            f"mIoU {_number(metrics.miou)}   pAcc {_number(metrics.pacc)}   "
            f"mAcc {_number(metrics.macc)}   fwIoU {_number(metrics.fwiou)}"
        )
        base = metrics.sets.get(SEEN_SET)
        if base is not None:
            lines.append(
                f"mIoU of seen classes {_number(base.miou)}, of unseen classes {_number(base.complement_miou)}, "
                f"harmonic mean {_number(base.hiou)}"
            )
    if accuracy.panoptic is not None:
        group = accuracy.panoptic.all
        lines.append(f"PQ {_number(group.pq)}   SQ {_number(group.sq)}   RQ {_number(group.rq)}")
    if accuracy.masks is not None:
        masks = accuracy.masks
        lines.append(f"mask AP {_number(masks.ap)}   AP50 {_number(masks.ap50)}   AP75 {_number(masks.ap75)}")
    return [*lines, *_crops(accuracy)]


def _crops(accuracy: Accuracy) -> list[str]:
    """How many crops were encoded, under which region budget, in words; nothing where that is not known."""
    region = accuracy.settings.get("region", {})
    budget = " ".join(f"{key}={region[key]:g}" for key in BUDGET if region.get(key)) or "none"
    return [] if accuracy.crops is None else [f"{accuracy.crops:.1f} crops encoded per image; region budget: {budget}"]


def _semantic(metrics: SemanticMetrics) -> list[str]:
    row = [metrics.miou, metrics.pacc, metrics.macc, metrics.fwiou]
    header = ["mIoU", "pAcc", "mAcc", "fwIoU"]
    parts = ["## Semantic segmentation", markdown_table(header, [_numbers(row)])]
    rows = []
    for name, part in metrics.sets.items():
        what = "seen (base)" if name == SEEN_SET else name
        figures = [part.miou, part.complement_miou, part.hiou, part.pacc, part.complement_pacc]
        rows.append([what, *_numbers(figures)])
    if rows:
        header = ["classes", "mIoU", "mIoU of the others", "hIoU", "pAcc", "pAcc of the others"]
        parts.append(markdown_table(header, rows))
    return parts


def _panoptic(metrics: PanopticMetrics) -> list[str]:
    rows = []
    for name, group in (("all", metrics.all), ("things", metrics.things), ("stuff", metrics.stuff)):
        rows.append([name, *_numbers([group.pq, group.sq, group.rq]), str(group.classes)])
    return ["## Panoptic segmentation", markdown_table(["", "PQ", "SQ", "RQ", "classes"], rows)]


def _masks(metrics: MaskMetrics) -> list[str]:
    header = ["AP", "AP50", "AP75", "small", "medium", "large", "recall"]
    sizes = [metrics.ap_small, metrics.ap_medium, metrics.ap_large]
    row = [metrics.ap, metrics.ap50, metrics.ap75, *sizes, metrics.recall]
    return ["## Masks of objects", markdown_table(header, [_numbers(row)])]


def _confusions(accuracy: Accuracy) -> list[str]:
    rows = [[c.true, c.predicted, f"{c.pixels:,}", _number(c.share)] for c in accuracy.confusions]
    header = ["true class", "taken for", "pixels", "% of the true class"]
    return ["## Largest confusions", markdown_table(header, rows)] if rows else []


def _classes(accuracy: Accuracy) -> list[str]:
    header, columns = ["class"], [accuracy.classes]
    if accuracy.seen is not None:
        header.append("in training")
        columns.append(["seen" if flag else "unseen" for flag in accuracy.seen])
    if accuracy.semantic is not None:
        header += ["IoU", "accuracy", "pixels"]
        columns += [_numbers(accuracy.semantic.iou), _numbers(accuracy.semantic.accuracy)]
        columns.append([f"{count:,}" for count in accuracy.semantic.pixels])
    if accuracy.panoptic is not None:
        header += ["PQ"]
        columns.append(_numbers(accuracy.panoptic.pq))
    if accuracy.masks is not None:
        header += ["mask AP"]
        columns.append(_numbers(accuracy.masks.per_class))
    return ["## Classes", markdown_table(header, zip(*columns, strict=True))]


def _measured_with(accuracy: Accuracy, made: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for name, value in {**made, **accuracy.settings}.items()
    ]
    return ["## Measured with", markdown_table(["", ""], rows)] if rows else []


def read_source(folder: Path) -> tuple[str, dict[str, str]] | None:
    """The data set and the source's identity in the report of a folder; None where there is none that can be read."""

    class Head(msgspec.Struct):
        dataset: str
        source: dict[str, str]

    try:
        head = msgspec.json.decode((folder / JSON).read_bytes(), type=Head)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return head.dataset, head.source


def _numbers(values: Iterable[float | None]) -> list[str]:
    return [_number(value) for value in values]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
