"""Which scheme quantises a graph best, which blocks suffer most, and which of them must stay high."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vocabseg.calibration.errors import CalibrationError
from vocabseg.calibration.fidelity import Fidelity, Judge
from vocabseg.calibration.quantize import write_quantised
from vocabseg.calibration.scales import Scheme
from vocabseg.calibration.statistics import Statistics
from vocabseg.calibration.targets import Target, blocks, load_graph, targets
from vocabseg.calibration.thresholds import METHODS

# Tried for graphs with a LayerNormalization before a product: SmoothQuant's alphas.
ALPHAS = (0.5, 0.7)
# A scheme must beat a plainer one by this share of the loss to be preferred.
GAIN = 0.03

Progress = Callable[[str, int, int], None]


class Tried(msgspec.Struct, frozen=True):
    """A scheme and how well it did."""

    scheme: Scheme
    fidelity: Fidelity


class BlockLoss(msgspec.Struct, frozen=True):
    """What quantising one block alone costs: `loss` as `Fidelity.loss`; weights of the block and its layers."""

    block: str
    loss: float
    weights: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """The schemes of one graph, in one kind.

    `judge` compares on images that the statistics have not seen.
    """

    graph: str
    path: Path
    statistics: Mapping[str, Statistics]
    judge: Judge
    kind: str
    progress: Progress

    def targets(self) -> list[Target]:
        """Everything in the graph that could be quantised."""
        return targets(load_graph(self.path))

    def methods(self, high: Sequence[str] = ()) -> list[Tried]:
        """Every method of choosing scales, and SmoothQuant where it can be folded, best first."""
        schemes = [Scheme(kind=self.kind, method=method, high=tuple(high)) for method in METHODS]
        if any(one.channels.size for one in self.statistics.values()):
            schemes += [Scheme(kind=self.kind, method="max", smooth=alpha, high=tuple(high)) for alpha in ALPHAS]
        tried = []
        for done, scheme in enumerate(schemes):
            self.progress(f"{self.graph} in {self.kind}: methods", done, len(schemes))
            tried.append(Tried(scheme, self.fidelity(scheme)))
        self.progress(f"{self.graph} in {self.kind}: methods", len(schemes), len(schemes))
        # The earlier ones are plainer: another one must be clearly better.
        order = {one.scheme: place for place, one in enumerate(tried)}
        return sorted(tried, key=lambda one: one.fidelity.loss * (1 + GAIN * (order[one.scheme] > 0)))

    def sensitivity(self, scheme: Scheme, feeds: int | None = None) -> list[BlockLoss]:
        """What each block costs when it alone is quantised by `scheme`, worst first."""
        every = self.targets()
        grouped = blocks(target for target in every if target.layer not in scheme.high)
        found = []
        for done, (block, members) in enumerate(grouped.items()):
            self.progress(f"{self.graph} in {self.kind}: blocks", done, len(grouped))
            layers = tuple(dict.fromkeys(target.layer for target in members))
            others = tuple(dict.fromkeys(target.layer for target in every if target.layer not in layers))
            alone = msgspec.structs.replace(scheme, high=others)
            try:
                loss = self.fidelity(alone, feeds).loss
            except CalibrationError:  # all its activations are constant zeros: there is nothing to quantise
                continue
            found.append(BlockLoss(block, loss, sum(target.operations for target in members), layers))
        self.progress(f"{self.graph} in {self.kind}: blocks", len(grouped), len(grouped))
        return sorted(found, key=lambda one: -one.loss)

    def fidelity(self, scheme: Scheme, feeds: int | None = None) -> Fidelity:
        """Of the graph quantised by a scheme; the file is dropped."""
        with tempfile.TemporaryDirectory(prefix="vocabseg-quantised-") as scratch:
            path = Path(scratch) / self.path.name
            write_quantised(self.path, path, scheme, self.statistics)
            return self.judge.fidelity(path, feeds)
