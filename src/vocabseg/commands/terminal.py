"""What a command says while it works: a bar on a terminal, lines elsewhere. Everything goes to standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vocabseg.runtime.progress import Progress, silent

# Images done, how many there are, and what to say beside them.
Step = Callable[[int, int, str], None]

# A total of so many parts or more is a share of the whole, not a number of things: it is shown in percent, and where
# there is no bar, with a line for each tenth.
SHARES = 1000


def announcer(quiet: bool) -> Callable[[str], None]:
    """A function that prints a line, or with `quiet` does nothing."""
    return (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """A function report(what, done, total) that shows how far the work is."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines()


def _lines() -> Progress:
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
def _bar() -> Iterator[Progress]:
    import rich.progress
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
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
    with rich.progress.Progress(
        *columns, console=Console(stderr=True), transient=True, speed_estimate_period=600
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total, visible=True)

        yield report


@contextmanager
def counting(quiet: bool, first: str, remaining: bool = True) -> Iterator[Step]:
    """A function step(done, total, what): a bar with the time that is left on a terminal, ten lines elsewhere.

    `first` is said before anything is counted; without `remaining` the bar leaves the time to `what`.
    """
    if quiet:
        yield lambda done, total, what: None
        return
    if not sys.stderr.isatty():
        yield _tenths()
        return
    import rich.progress
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    columns += [TimeRemainingColumn()] if remaining else []
    with rich.progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(first, total=None)
        yield lambda done, total, what: bar.update(task, description=what, completed=done, total=total)


def _tenths() -> Step:
    shown = 0

    def step(done: int, total: int, what: str) -> None:
        nonlocal shown
        if done * 10 // total > shown or (done == total and shown < 10):
            shown = done * 10 // total
            print(f"  {done} of {total} images, {what}", file=sys.stderr, flush=True)

    return step
