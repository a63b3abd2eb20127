"""The report as tables of text, made once for the terminal, Markdown and the page."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vocabseg.benchmarks.speed.results import TOTAL, BenchmarkReport, Check, Timing, VariantResult, stage_place
from vocabseg.runtime.progress import counted


@dataclass(frozen=True)
class Table:
    """A titled table; `note` says how to read it, `marked` are rows that say something is wrong."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    left: int = 1  # columns of words, which are aligned left
    marked: list[int] = field(default_factory=list)


def report_tables(report: BenchmarkReport) -> list[Table]:
    """Every table that has rows, the most important first."""
    measured = [variant for variant in report.variants if variant.reason is None]
    tables = [latency(measured), stages(measured), *(roofline(variant, report) for variant in measured)]
    tables += [batches(measured), start_and_text(measured), region_budget(report)]
    tables += [parity(variant) for variant in measured if variant.parity is not None]
    tables += [absent(report.variants), images(report), machine(report)]
    return [table for table in tables if table.rows]


def latency(variants: Sequence[VariantResult]) -> Table:
    """End to end, from the image file to its labels."""
    rows = []
    for variant in variants:
        if variant.total is not None:
            total = variant.total
            figures = [seconds(total.p50), seconds(total.p90), seconds(total.p99)]
            rate = rate_text(1 / total.p50) if total.p50 else "-"
            rows.append([variant.name, *figures, rate, _ratio(total, variants[0].total)])
    note = (
        "From the image file to its labels, one image at a time. The last column is the median over pairs of runs on "
    )
    note += "the same image in the same round, with its quartiles; below 1 is faster than the first row."
    return Table(f"Latency, {TOTAL}", ["variant", "p50", "p90", "p99", "images/s", "time ratio"], rows, note)


def stages(variants: Sequence[VariantResult]) -> Table:
    """Medians of every stage."""
    names = sorted(
        {stage for variant in variants for stage in variant.stages}, key=lambda name: (stage_place(name), name)
    )
    rows = []
    for name in names:
        cells = []
        for variant in variants:
            whole = sum(timing.p50 for timing in variant.stages.values())
            own = variant.stages.get(name)
            cells.append("-" if own is None else f"{seconds(own.p50)} ({100 * own.p50 / whole:.0f} %)")
        rows.append([name, *cells])
    note = "Median, and its share of the stages together. PyTorch's reference runs some stages together."
    return Table("Stages", ["stage", *(variant.name for variant in variants)], rows, note)


def roofline(variant: VariantResult, report: BenchmarkReport) -> Table:
    """How near every stage comes to what the device can do."""
    rows = []
    unit = product_unit(variant.precision)
    for line in variant.roof:
        work = amount(line.operations, unit.removesuffix("/s")) if line.operations else "-"
        times = [seconds(line.floor), seconds(line.seconds), f"{100 * line.share:.1f} %"]
        rows.append([line.stage, work, amount(line.bytes, "B"), *times, line.bound])
    peaks = report.peaks
    rate = peaks.products.get(variant.precision, peaks.products["float32"])
    note = f"Per image. Measured peaks: {amount(rate, unit)} in a product, {amount(peaks.copy, 'B/s')} in a copy."
    if any(line.share > 1 for line in variant.roof):
        note += " Over 100 %: the machine was busier while its peak was measured than while the stage ran."
    header = ["stage", "work", "bytes", "floor", "took", "reached", "bound"]
    return Table(f"Roofline of {variant.name}", header, rows, note)


def batches(variants: Sequence[VariantResult]) -> Table:
    """Throughput of several images in one go."""
    rows = [
        [variant.name, str(batch.images), seconds(batch.timing.p50), rate_text(batch.images_per_second),
         rate_text(batch.regions_per_second)]
        for variant in variants for batch in variant.batches
    ]  # fmt: skip
    return Table("Throughput", ["variant", "batch", "p50", "images/s", "regions/s"], rows)


def start_and_text(variants: Sequence[VariantResult]) -> Table:
    """Memory, cold start and text encoding."""
    rows = []
    for variant in variants:
        cold = "-" if variant.cold_start is None else seconds(variant.cold_start.timing.p50)
        text = "-" if variant.text is None else seconds(variant.text.per_thousand)
        memory = [
            "-" if peak is None else amount(peak, "B") for peak in (variant.peak_host_bytes, variant.peak_device_bytes)
        ]
        rows.append([variant.name, *memory, cold, text])
    note = (
        "Cold start: from the start of a fresh process, names not yet encoded and no hash known, to the first labels. "
    )
    steps = [variant.cold_start.steps for variant in variants if variant.cold_start is not None]
    if steps:
        note += f"Of {variants[0].name}: " + ", ".join(f"{name} {seconds(value)}" for name, value in steps[0].items())
    header = ["variant", "host memory", "device memory", "cold start", "1,000 names"]
    return Table("Memory, cold start, text", header, rows, note)


def parity(variant: VariantResult) -> Table:
    """Every figure of the parity contract."""
    found = variant.parity
    if found is None:
        return Table("", [], [])
    rows = [[check.stage, check.what, _figure(check), _limit(check), _verdict(check)] for check in found.checks]
    marked = [index for index, check in enumerate(found.checks) if not check.passed]
    note = f"Against {found.against}. "
    note += "The contract holds." if found.broken is None else f"BROKEN: {found.broken} is the first stage beyond it."
    if found.miou is not None:
        miou = found.miou
        note += (
            f" Mean IoU on {miou.scenes} scenes: {miou.miou:.2f}, the other's {miou.other:.2f}; the difference lies "
        )
        note += f"in {miou.low:+.2f} .. {miou.high:+.2f} (95 %)."
    return Table(f"Parity of {variant.name}", ["stage", "figure", "value", "limit", ""], rows, note, 2, marked)


def region_budget(report: BenchmarkReport) -> Table:
    """What the region budget changes."""
    shares = [(variant.name, variant.relabelled) for variant in report.variants if variant.relabelled is not None]
    rows = [[name, f"{100 * share:.2f} %"] for name, share in shares]
    note = f"{report.region_budget}. Times are with it; parity is that of the published method, which has none."
    return Table("Region budget", ["variant", "labels changed"], rows, note)


def absent(variants: Sequence[VariantResult]) -> Table:
    """Variants that were not measured."""
    rows = [[variant.name, variant.reason] for variant in variants if variant.reason is not None]
    return Table("Not measured", ["variant", "why"], rows, left=2)


def images(report: BenchmarkReport) -> Table:
    """The inputs."""
    rows = [
        [
            info.name, f"{info.size[1]} x {info.size[0]}", f"{info.padded[1]} x {info.padded[0]}", str(info.regions),
            str(info.encoded),
        ]
        for info in report.images
    ]  # fmt: skip
    return Table("Images", ["image", "size", "network input", "regions", "crops encoded"], rows)


def machine(report: BenchmarkReport) -> Table:
    """The machine and the software."""
    rows = [[name, text] for name, text in report.machine.items()]
    peaks = ", ".join(f"{amount(rate, product_unit(name))} {name}" for name, rate in report.peaks.products.items())
    rows.append(["measured peaks", f"{peaks}; {amount(report.peaks.copy, 'B/s')} ({report.peaks.how})"])
    return Table("Machine", ["", ""], rows, left=2)


def headline(report: BenchmarkReport) -> str:
    """One line: what was measured, when."""
    settings = f", {' '.join(report.settings)}" if report.settings else ""
    settings += "" if report.region_budget == "none" else f", region budget {report.region_budget}"
    return (
        f"{report.bundle} ({report.bundle_digest}{settings}), {counted(report.classes, 'class')}, "
        f"{counted(len(report.images), 'image')}, {counted(report.rounds, 'round')}, {report.date}"
    )


def verdict(report: BenchmarkReport) -> str:
    """The outcome in one line: how fast the first variant is beside the others, and whether parity holds."""
    timed = [variant for variant in report.variants if variant.total is not None]
    speeds = [
        f"{other.total.p50 / timed[0].total.p50:.3g} times as fast as {other.name}"
        for other in timed[1:]
        if other.total is not None and timed[0].total is not None and timed[0].total.p50
    ]
    checked = [variant for variant in report.variants if variant.parity is not None]
    holds = "parity holds" if checked else "parity was not measured"
    if report.broken:
        holds = f"parity is BROKEN by {', '.join(dict.fromkeys(name for name, _ in report.broken))}"
    name = timed[0].name if timed else report.bundle
    return f"{name}: {', '.join([*speeds, holds])}"


def seconds(value: float) -> str:
    """Three digits and a unit."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (float("inf"), 1.0, "s")):
        if value < limit:
            return f"{_three(value * factor)} {unit}"
    return f"{value} s"


def amount(value: float, unit: str) -> str:
    """Three digits, a decimal prefix and the unit."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{_three(value / limit)} {prefix}{unit}"
    return f"{_three(value)} {unit}"


def product_unit(precision: str) -> str:
    """What products of that precision are counted in."""
    return "OP/s" if precision == "int8" else "FLOP/s"


def rate_text(value: float) -> str:
    """Three digits, however small."""
    return _three(value) if value >= 0.1 else f"{value:.3g}"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(own: Timing, first: Timing | None) -> str:
    if first is None or own is first or len(own.seconds) != len(first.seconds):
        return "1" if own is first else "-"
    low, middle, high = np.percentile(np.divide(own.seconds, first.seconds), [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _figure(check: Check) -> str:
    if "share" in check.what:
        return f"{100 * check.value:.3f} %"
    if "cosine" in check.what:
        return f"{check.value:.7f}"
    return f"{check.value:.0f}" if float(check.value).is_integer() else f"{check.value:.3g}"


def _limit(check: Check) -> str:
    if check.limit is None:
        return "-"
    text = f"{100 * check.limit:g} %" if "share" in check.what else f"{check.limit:g}"
    return f"{'>=' if check.least else '<='} {text}"


def _verdict(check: Check) -> str:
    return "" if check.limit is None else "ok" if check.passed else "BROKEN"
