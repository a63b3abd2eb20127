"""How a graph is quantised, with what was tried before."""

import msgspec

from vocabseg.calibration.scales import Scheme
from vocabseg.calibration.search import BlockLoss, Tried


class GraphPlan(msgspec.Struct, frozen=True):
    """How one graph is quantised, and what was tried.

    Attributes:
        tried: schemes, best first; `blocks`: what each block costs alone, worst first.
        scheme: the one that is used.
    """

    graph: str
    tried: list[Tried]
    blocks: list[BlockLoss]
    scheme: Scheme
