"""A benchmark's report: tables on the terminal, JSON for programs, Markdown to read, one HTML page to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vocabseg.benchmarks.page.tables import Table, headline, report_tables
from vocabseg.benchmarks.speed.results import BenchmarkReport, encode_report
from vocabseg.benchmarks.speed.run import BenchmarkOutcome
from vocabseg.benchmarks.writing import markdown_table
from vocabseg.runtime.files import atomic_write, make_folder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

JSON, MARKDOWN, PAGE = "bench.json", "bench.md", "bench.html"
# A first column narrower than this is not broken within words.
LONGEST_WORD = 20
# What a reader of a terminal wants at once; the rest is in the files.
ON_TERMINAL = ("Latency", "Stages", "Roofline", "Throughput", "Memory", "Region budget", "Parity", "Not measured")


def write_report(outcome: BenchmarkOutcome, folder: Path) -> list[Path]:
    """Write the report's files into `folder`, each whole or not at all; returns them, the one to look at first."""
    from vocabseg.benchmarks.page.html import to_page

    make_folder(folder)
    texts = {PAGE: to_page(outcome).encode(), MARKDOWN: to_markdown(outcome.report).encode()}
    for name, data in {**texts, JSON: encode_report(outcome.report)}.items():
        with atomic_write(folder / name) as file:
            file.write(data)
    return [folder / name for name in (PAGE, MARKDOWN, JSON)]


def to_markdown(report: BenchmarkReport) -> str:
    """The whole report as Markdown."""
    parts = ["# Benchmark", headline(report), f"Parity is measured against {report.oracle_reason}."]
    for table in report_tables(report):
        parts.append(f"## {table.title}")
        if table.note:
            parts.append(table.note)
        parts.append(markdown_table(table.header, table.rows))
    return "\n\n".join(parts) + "\n"


def print_report(report: BenchmarkReport, console: "Console") -> None:
    """The main tables on a terminal, fitted to its width."""
    console.print(headline(report), highlight=False, markup=False)
    print_tables([table for table in report_tables(report) if table.title.startswith(ON_TERMINAL)], console)


def print_tables(tables: Sequence[Table], console: "Console") -> None:
    """Tables one below the other."""
    for table in tables:
        console.print()
        console.print(_rich(table))


def _rich(table: Table) -> "RichTable":
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    made = RichTable(
        title=escape(table.title), caption=escape(table.note) or None, title_justify="left", caption_justify="left",
        title_style="bold", caption_style="dim", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    for index, name in enumerate(table.header):
        wordy = index < table.left
        words = " ".join(row[index] for row in table.rows).split() if index == 0 else [""]
        least = min(max(map(len, words)), LONGEST_WORD)
        made.add_column(escape(name), justify="left" if wordy else "right", overflow="fold", min_width=least)
    for index, row in enumerate(table.rows):
        made.add_row(*(escape(cell) for cell in row), style="bold red" if index in table.marked else None)
    return made
