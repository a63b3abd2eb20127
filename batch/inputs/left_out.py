"""What was left out of the inputs, and why: a table in the output folder, and a line for the terminal."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vocabseg.batch.inputs.items import LeftOut
from vocabseg.runtime.files import atomic_write
from vocabseg.runtime.progress import counted

FILE = "left_out.csv"
# Reasons that the terminal shows.
SHOWN = 3


@contextmanager
def recorded(output: Path) -> Iterator[LeftOut]:
    """A function that takes note of what is left out; the table is written when the block ends well.

    There is no table where nothing was left out. Raises OutputError where it cannot be written.
    """
    count = 0
    with atomic_write(output / FILE) as file:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", "")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("source", "reason"))

        def left_out(source: str, reason: str) -> None:
            nonlocal count
            count += 1
            writer.writerow((source, reason))

        yield left_out
        text.detach()  # flushed, and left open
    if not count:
        (output / FILE).unlink(missing_ok=True)


def left_out_line(output: Path) -> str | None:
    """How many files were left out and the reasons, the most frequent first; None if there are none."""
    if not (output / FILE).is_file():
        return None
    with (output / FILE).open(encoding="utf-8", newline="") as file:
        reasons = Counter(row["reason"] for row in csv.DictReader(file))
    files = reasons.total()
    shown = [f"{count:,}: {reason}" for reason, count in reasons.most_common(SHOWN)]
    more = f"; and {counted(len(reasons) - SHOWN, 'other reason')}" if len(reasons) > SHOWN else ""
    return f"{counted(files, 'file')} left out ({'; '.join(shown)}{more}): see {output / FILE}"
