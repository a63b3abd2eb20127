"""Two reports side by side: what became faster or slower by more than the figures vary by themselves."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vocabseg.benchmarks.page.tables import Table, seconds
from vocabseg.benchmarks.speed.results import TOTAL, BenchmarkReport, Timing, VariantResult

# Fewer runs than these say nothing about how far a figure varies.
ENOUGH = 3
SLOWER, FASTER, SAME, UNKNOWN = "slower", "faster", "", "?"


@dataclass(frozen=True)
class Difference:
    """One figure in two reports: medians in seconds, and the mark "slower", "faster", "" or "?" (too few runs)."""

    variant: str
    what: str
    old: float
    new: float
    mark: str

    @property
    def ratio(self) -> float:
        """New over old."""
        return self.new / self.old if self.old else float("nan")


def compare(old: BenchmarkReport, new: BenchmarkReport) -> list[Difference]:
    """Every timing that both reports have."""
    before = {variant.name: variant for variant in old.variants}
    found = []
    for variant in new.variants:
        if variant.name not in before:
            continue
        earlier = dict(_timings(before[variant.name]))
        for what, timing in _timings(variant):
            if what in earlier:
                one = earlier[what]
                found.append(Difference(variant.name, what, one.p50, timing.p50, _mark(one, timing)))
    return found


def slower_than(differences: Iterable[Difference], percent: float) -> list[Difference]:
    """Those that became slower by more than `percent`, and by more than they vary, or had too few runs to tell."""
    return [one for one in differences if one.mark in (SLOWER, UNKNOWN) and one.ratio > 1 + percent / 100]


def compare_table(old: BenchmarkReport, new: BenchmarkReport) -> Table:
    """The differences as a table, slower figures marked; the note names what makes the two hard to compare."""
    differences = compare(old, new)
    rows = [
        [one.variant, one.what, seconds(one.old), seconds(one.new), f"{one.ratio:.3f}", one.mark] for one in differences
    ]
    note = (
        "A mark stands where the medians differ by more than the larger of the two spreads (the distance between the "
    )
    note += f"quartiles, differences between the images taken out); ? where one has fewer than {ENOUGH} runs."
    note += "".join(f" NOTE: {warning}." for warning in warnings(old, new))
    marked = [index for index, one in enumerate(differences) if one.mark == SLOWER]
    title = f"{old.date} and {new.date}"
    return Table(title, ["variant", "figure", "old", "new", "ratio", ""], rows, note, 2, marked)


def warnings(old: BenchmarkReport, new: BenchmarkReport) -> list[str]:
    """What differs between the two besides the code."""
    found = []
    for name in ("processor", "cores", "threads used"):
        if old.machine.get(name) != new.machine.get(name):
            found.append(f"{name}: {old.machine.get(name)} and {new.machine.get(name)}")
    if old.bundle_digest != new.bundle_digest:
        found.append(f"the bundles differ ({old.bundle} {old.bundle_digest}, {new.bundle} {new.bundle_digest})")
    if [(info.name, info.size) for info in old.images] != [(info.name, info.size) for info in new.images]:
        found.append("the images differ")
    if old.classes != new.classes:
        found.append(f"{old.classes} and {new.classes} classes")
    rates = (old.peaks.products.get("float32", 0.0), new.peaks.products.get("float32", 0.0))
    if rates[0] and abs(rates[1] / rates[0] - 1) > 0.1:
        found.append(f"the machine's own peak changed by {100 * (rates[1] / rates[0] - 1):+.0f} %")
    return found


def _timings(variant: VariantResult) -> Iterator[tuple[str, Timing]]:
    if variant.total is not None:
        yield TOTAL, variant.total
    yield from variant.stages.items()
    for batch in variant.batches:
        yield f"batch of {batch.images}", batch.timing
    if variant.cold_start is not None:
        yield "cold start", variant.cold_start.timing
    if variant.text is not None:
        yield f"text of {variant.text.names} names", variant.text.timing


def _mark(old: Timing, new: Timing) -> str:
    if min(len(old.seconds), len(new.seconds)) < ENOUGH:
        return UNKNOWN
    difference = new.p50 - old.p50
    if abs(difference) <= max(old.spread, new.spread):
        return SAME
    return SLOWER if difference > 0 else FASTER
