"""How much a machine does and what a million images cost: `python -m vocabseg.benchmarks.sizing bench.json`."""

import argparse
import math
import sys
from pathlib import Path

from vocabseg.benchmarks.page.tables import Table
from vocabseg.benchmarks.speed.results import BenchmarkReport, VariantResult, read_report
from vocabseg.runtime.errors import VocabsegError

SECONDS_PER_HOUR = 3600
SECONDS_PER_DAY = 86_400
# Of the measured rate: at all of it, a server's queues grow without bound.
LOAD = 0.7


def sizing_table(report: BenchmarkReport, price: float) -> Table:
    """Images per second, machines for a million images a day, and the cost of a million, per variant of a bench report.

    `price` is that of the machine (or the GPU with its share of one) for an hour, in any currency. Planned is LOAD of
    the rate of the best batch size.
    """
    rows = []
    for variant in report.variants:
        rate = best_rate(variant)
        if rate is None:
            continue
        planned = LOAD * rate
        hours = 1e6 / planned / SECONDS_PER_HOUR
        machines = math.ceil(1e6 / (planned * SECONDS_PER_DAY))
        rows.append(
            [variant.name, f"{rate:.3g}", f"{planned * SECONDS_PER_DAY:,.0f}", f"{machines:,} machines",
             f"{hours:,.1f}", f"{hours * price:,.2f}"]
        )  # fmt: skip
    machine = report.machine.get("processor", "this machine")
    return Table(
        title=f"Sizing of {report.bundle} on {machine}",
        header=["variant", "images/s", "images/day", "for 1M/day", "hours/1M", "cost/1M"],
        rows=rows,
        note=f"at {LOAD:.0%} load, with {price:g} for an hour of the machine; the rate is that of the best batch size",
    )


def best_rate(variant: VariantResult) -> float | None:
    """Images per second of the best batch size, or of single images; None where nothing was measured."""
    rates = [batch.images_per_second for batch in variant.batches]
    if variant.total is not None and variant.total.p50 > 0:
        rates.append(1 / variant.total.p50)
    return max(rates, default=None)


def main() -> None:
    """Print the table of one or more reports."""
    parser = argparse.ArgumentParser(prog="python -m vocabseg.benchmarks.sizing", description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path, help="bench.json, as `vocabseg bench` writes it")
    parser.add_argument("--price", type=float, required=True, help="of the machine (or GPU) for an hour")
    arguments = parser.parse_args()
    try:
        if arguments.price < 0:
            parser.error("--price must not be below 0")
        tables = [sizing_table(read_report(path), arguments.price) for path in arguments.reports]
    except VocabsegError as error:
        sys.exit(f"vocabseg: {error}")
    from rich.console import Console

    from vocabseg.benchmarks.page.output import print_tables

    print_tables(tables, Console())


if __name__ == "__main__":
    main()
