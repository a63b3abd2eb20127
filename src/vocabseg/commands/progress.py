"""Progress of long work: a bar on a terminal, lines elsewhere. Everything goes to standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, int, int], None]

# A total of so many parts or more is a share of the whole, not a number of things: it is shown in percent, and where
# there is no bar, with a line for each tenth.
SHARES = 1000


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """A function report(what, done, total) that shows how far the work is."""
    if quiet:
        yield lambda what, done, total: None
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines()


def _lines() -> Report:
    """One line when a stage begins, and for shares of a whole one per tenth, with the time left."""
    current, began, tenth = "", 0.0, 0

    def report(what: str, done: int, total: int) -> None:
        nonlocal current, began, tenth
        if what != current:
            current, began, tenth = what, time.monotonic(), 0
            print(f"  {what} ...", file=sys.stderr, flush=True)
        if total >= SHARES and 10 * done // total > tenth:
            tenth = 10 * done // total
            left = (time.monotonic() - began) * (total - done) / done
            print(f"  {what}: {10 * tenth} %, about {left:.0f} s left", file=sys.stderr, flush=True)

    return report


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        Task,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class AmountColumn(MofNCompleteColumn):
        def render(self, task: Task) -> Text:
            share = task.total is not None and task.total >= SHARES
            return Text(f"{task.percentage:3.0f} %") if share else super().render(task)

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        AmountColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    # Steps of an engine's build can be minutes apart.
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=600) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total, visible=True)

        yield report
