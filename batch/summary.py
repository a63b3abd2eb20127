"""The summary of a run: class frequencies as a table and a plot, the broken images, a contact sheet."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vocabseg.batch.inputs.left_out import FILE as LEFT_OUT
from vocabseg.batch.inputs.left_out import left_out_line
from vocabseg.batch.job import SUMMARY, read_record
from vocabseg.batch.shard import ERRORS, committed, read_counts, schema, shard_folder
from vocabseg.runtime.files import atomic_write
from vocabseg.runtime.progress import counted
from vocabseg.runtime.result.categories import Categories

if TYPE_CHECKING:
    from vocabseg.batch.coordinator import BatchOutcome

TABLE, PLOT, SHEET = "classes.csv", "classes.png", "contact_sheet.png"
# Classes that the terminal shows.
SHOWN = 5


@dataclass(frozen=True)
class Frequencies:
    """Over all committed shards, by class index: pixels, and images in which the class occurs."""

    classes: Sequence[str]
    pixels: Sequence[int]
    occurrences: Sequence[int]
    images: int
    broken: int
    categories: Categories = field(default_factory=Categories)

    @property
    def order(self) -> list[int]:
        """The classes, the one with most pixels first."""
        return sorted(range(len(self.classes)), key=lambda index: (-self.pixels[index], index))

    def share(self, index: int) -> float:
        """Percent of the pixels that have a class."""
        return 100 * self.pixels[index] / max(1, sum(self.pixels))


def frequencies(output: Path) -> Frequencies:
    """Sums over the shards' manifests; raises OutputError for damaged ones."""
    pixels: Counter[int] = Counter()
    occurrences: Counter[int] = Counter()
    images = broken = 0
    for number in committed(output):
        counts = read_counts(output, number)
        pixels.update(counts.pixels)
        occurrences.update(counts.occurrences)
        images += counts.images
        broken += counts.broken
    record = read_record(output)
    classes = record.classes
    indices = range(len(classes))
    sums = [pixels[i] for i in indices], [occurrences[i] for i in indices], images, broken
    return Frequencies(classes, *sums, record.categories)


def write_summary(output: Path, fresh: bool = True) -> list[Path]:
    """Write the summary, unless it exists and nothing is `fresh`; returns its files. Raises OutputError."""
    from vocabseg.batch.pictures import contact_sheet, plot_frequencies

    folder = output / SUMMARY
    folder.mkdir(exist_ok=True)
    found = frequencies(output)
    files = [folder / TABLE, folder / PLOT, output / ERRORS]
    lists = [output / LEFT_OUT] if (output / LEFT_OUT).is_file() else []
    if found.images:
        files.append(folder / SHEET)
    if fresh or not all(path.is_file() for path in files):
        _write_table(found, folder / TABLE)
        plot_frequencies(found, folder / PLOT)
        _write_errors(output)
        if found.images:
            contact_sheet(output, found, folder / SHEET)
    return files + lists


def summary_lines(found: Frequencies, output: Path, outcome: "BatchOutcome") -> list[str]:
    """What the terminal shows at the end."""
    lines = []
    if outcome.seconds:
        rate = (outcome.done + outcome.broken) / outcome.seconds
        done = counted(outcome.done, "image")
        lines.append(f"{done} in {outcome.seconds:.1f} s, {rate:.2f} images/s including the start")
    for index in found.order[:SHOWN]:
        if found.pixels[index]:
            name, share = found.classes[index], found.share(index)
            where = counted(found.occurrences[index], "image")
            lines.append(f"  {name:<24} {share:5.1f} % of the pixels, in {where}")
    lines.append(f"{counted(found.images, 'image')} in {output}")
    return lines


def failure_lines(found: Frequencies, output: Path) -> list[str]:
    """What has no result, and where the reasons are: broken images, and files that were left out of the inputs."""
    left_out = left_out_line(output)
    lines = [] if left_out is None else [left_out]
    if found.broken:
        lines.append(f"{counted(found.broken, 'broken image')}: {output / ERRORS} says why; --retry-broken tries again")
    return lines


def _write_table(found: Frequencies, path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("class", "index", "images", "pixels", "percent"))
    for index in found.order:
        row = (found.classes[index], index, found.occurrences[index], found.pixels[index], f"{found.share(index):.4f}")
        writer.writerow(row)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def _write_errors(output: Path) -> None:
    """All shards' error tables as one, empty if no image is broken."""
    from pyarrow.parquet import ParquetWriter, read_table

    with atomic_write(output / ERRORS) as file, ParquetWriter(file, schema(ERRORS)) as writer:
        for number in committed(output):
            path = output / shard_folder(number) / ERRORS
            if path.is_file():
                writer.write_table(read_table(path, partitioning=None))
