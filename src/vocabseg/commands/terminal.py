"""What a command says while it works: a bar on a terminal, lines elsewhere. Everything goes to standard error."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from vocabseg.runtime.progress import Progress, counted, silent

# Exit code of a command that ran and did not get what was asked for; 1 is a fault of vocabseg, 2 unusable input.
FAILED = 3
# A total of so many parts or more is a share of the whole, not a number of things: it is shown in percent, and where
# there is no bar, with a line for each tenth.
SHARES = 1000
# Of tables that go to a file.
WIDTH = 140
# Seconds after which a command that shows no bar says that it still works.
SILENCE = 15.0
# Seconds after which a terminal gets a bar: what is over by then does without, and without the import of rich.
PATIENCE = 0.5


def printable(text: str) -> str:
    """Text in which every character that a terminal would obey is spelt out, such as \\x1b for the escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def announcer(quiet: bool) -> Callable[[str], None]:
    """A function that prints a line, or with `quiet` does nothing."""
    return (lambda line: None) if quiet else (lambda line: print(printable(line), file=sys.stderr, flush=True))


def print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    """Print a table without frames, its columns folded where a terminal is too narrow."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(escape(name), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(file=stream, width=None if stream.isatty() else WIDTH).print(table)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """A function report(what, done, total) for work in stages: each `what` is one."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _late_bar() as report:
            yield report
    else:
        yield _stage_lines()


@contextmanager
def counting(quiet: bool, first: str, remaining: bool = True, noun: str = "image") -> Iterator[Progress]:
    """A function report(what, done, total) for one long count of images; `what` is shown beside it and may change.

    `first` is shown until the first report; with `remaining` the bar shows the time left, else that is up to `what`.
    `noun` is what is counted; a total of 0 means that it is not known.
    """
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        from rich import progress as rich

        columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn()]
        with _bar(*columns, rich.TimeElapsedColumn(), *([rich.TimeRemainingColumn()] if remaining else [])) as bar:
            task = bar.add_task(first, total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)
    else:
        with _alive(first) as seen:
            show = _tenths(noun)

            def report(what: str, done: int, total: int) -> None:
                so_far = f"{done} of {counted(total, noun)}" if total else counted(done, noun)
                seen(f"{so_far}, {what}" if done else what, bool(total) and show(what, done, total))

            yield report


def _stage_lines() -> Progress:
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


def _tenths(noun: str) -> Callable[[str, int, int], bool]:
    """One line for each tenth of the images, or whatever is counted; whether there was one is returned."""
    shown = 0

    def report(what: str, done: int, total: int) -> bool:
        nonlocal shown
        due = done * 10 // total > shown or (done == total and shown < 10)
        if due:
            shown = done * 10 // total
            print(f"  {done} of {counted(total, noun)}, {what}", file=sys.stderr, flush=True)
        return due

    return report


@contextmanager
def _alive(first: str) -> Iterator[Callable[[str, bool], None]]:
    """Says after SILENCE seconds without a line what goes on and since when.

    It yields a function that takes what goes on, and whether a line has just said so.
    """
    began, what, told, ended = time.monotonic(), first, threading.Event(), threading.Event()

    def speak() -> None:
        while not ended.is_set():
            if not told.wait(SILENCE):
                print(f"  {what} ... {time.monotonic() - began:.0f} s so far", file=sys.stderr, flush=True)
            told.clear()

    def seen(now: str, line: bool) -> None:
        nonlocal what
        what = now
        if line:
            told.set()

    speaker = threading.Thread(target=speak, name="alive", daemon=True)
    speaker.start()
    try:
        yield seen
    finally:
        ended.set()
        told.set()
        speaker.join()


@contextmanager
def _late_bar() -> Iterator[Progress]:
    """The bar of `_stage_bar`, which appears after PATIENCE seconds."""
    lock, latest = threading.Lock(), None
    shown: Progress = silent
    with ExitStack() as bar:

        def show() -> None:
            nonlocal shown
            with lock:
                if not timer.finished.is_set():
                    shown = bar.enter_context(_stage_bar())
                    if latest is not None:
                        shown(*latest)

        def report(what: str, done: int, total: int) -> None:
            nonlocal latest
            with lock:
                latest = what, done, total
                shown(what, done, total)

        timer = threading.Timer(PATIENCE, show)
        timer.daemon = True
        timer.start()
        try:
            yield report
        finally:
            with lock:
                timer.cancel()


@contextmanager
def _stage_bar() -> Iterator[Progress]:
    from rich import progress as rich
    from rich.text import Text

    class AmountColumn(rich.MofNCompleteColumn):
        def render(self, task: rich.Task) -> Text:
            share = task.total is not None and task.total >= SHARES
            return Text(f"{task.percentage:3.0f} %") if share else super().render(task)

    columns = [rich.SpinnerColumn(), rich.TextColumn("{task.description}"), rich.BarColumn(), AmountColumn()]
    columns += [rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn(compact=True)]
    # Steps of an engine's build can be minutes apart.
    with _bar(*columns, speed_estimate_period=600) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total, visible=True)

        yield report


def _bar(*columns: Any, **options: Any) -> Any:
    from rich.console import Console
    from rich.progress import Progress as Bar

    return Bar(*columns, console=Console(stderr=True), transient=True, **options)
