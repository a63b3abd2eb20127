"""What of a graph cannot be in FP16: found from the ranges of its tensors, then by bisection against float32."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from vocabseg.calibration.failures import CalibrationError
from vocabseg.calibration.observe.statistics import HALF_MAX, HALF_NORMAL, Statistics
from vocabseg.calibration.search.fidelity import Comparator, Fidelity
from vocabseg.export.half.convert import write_half
from vocabseg.export.half.recipe import GraphRecipe, Keep, Recipe
from vocabseg.export.half.rounding import write_rounded
from vocabseg.runtime.progress import Progress

# Images to come may reach further than those observed.
HEADROOM = 2.0
# What FP16 may lose, by the parity contract: mean and least cosine of embeddings; the masks' mean difference, and the
# relative error that goes with that mean cosine.
COSINE, WORST, MASKS, RELATIVE = 0.9995, 0.998, 2e-3, 0.03
# Operations that make a large number of a small one, by the input where a small number matters: 1 / x, log x and so on.
SENSITIVE = {"Div": 1, "Reciprocal": 0, "Log": 0, "Sqrt": 0, "Pow": 0}


def passes(found: Fidelity) -> bool:
    """Whether a graph in FP16 is as near to float32 as the parity contract asks."""
    near = found.cosine >= COSINE and found.worst >= WORST
    return found.finite and near and found.masks <= MASKS and found.relative <= RELATIVE


@dataclass
class HalfSearch:
    """Finds the FP16 form of the graph at `path`, named `graph` in recipes, starting from the recipe `base`.

    `statistics` are those of its float tensors; `comparator` works on other inputs.
    """

    graph: str
    path: Path
    statistics: Mapping[str, Statistics]
    comparator: Comparator
    base: Recipe
    progress: Progress
    kept: dict[str, str] = field(default_factory=dict)  # node -> reason
    tried: int = 0

    def repair(self) -> GraphRecipe:
        """The recipe for the graph: the base's, plus the nodes that must stay in float32 and why.

        Raises CalibrationError where not even a graph with all its nodes in float32 passes.
        """
        import onnx_ir

        model = onnx_ir.load(self.path)
        self.kept = self._too_large(model)
        vanishing = {node: reason for node, reason in self._too_small(model).items() if node not in self.kept}
        found = self.fidelity(self.kept)
        if not passes(found) and vanishing:
            self.kept |= vanishing
            found = self.fidelity(self.kept)
            if passes(found):
                self._prune(vanishing)
        if not passes(found):
            self._bisect(model, found)
        return self.recipe(self.kept)

    def fidelity(self, kept: Mapping[str, str]) -> Fidelity:
        """Of the graph in FP16 with these nodes in float32, rounded as a GPU would."""
        self.tried += 1
        self.progress(f"{self.graph} in float16: trying", self.tried, self.tried)
        recipe = msgspec.structs.replace(self.base, graphs={self.graph: self.recipe(kept)})
        with tempfile.TemporaryDirectory(prefix="vocabseg-half-") as scratch:
            half = Path(scratch) / self.path.name
            write_half(self.path, half, recipe, self.graph)
            rounded = half.with_suffix(".rounded.onnx")
            write_rounded(half, rounded)
            return self.comparator.fidelity(rounded)

    def recipe(self, kept: Mapping[str, str]) -> GraphRecipe:
        """The base's part for the graph with these nodes added."""
        part = self.base.graph(self.graph)
        return msgspec.structs.replace(
            part, keep=[*part.keep, *(Keep(node=node, reason=reason) for node, reason in kept.items())]
        )

    def _too_large(self, model: Any) -> dict[str, str]:
        """Nodes that write or read a tensor which reaches, or may reach, beyond FP16's largest number.

        Infinities that are there in float32, such as those of an attention mask, are the same in FP16.
        """
        return self._around(
            model,
            lambda seen: seen.largest * HEADROOM > HALF_MAX,
            lambda name, seen: f"{name} reaches {seen.largest:.3g}; FP16 ends at {HALF_MAX:.0f}",
        )

    def _too_small(self, model: Any) -> dict[str, str]:
        """Nodes around a tensor that is below FP16's normal numbers as a whole, or where a small number counts."""
        found = self._around(
            model,
            lambda seen: 0 < seen.largest < HALF_NORMAL,
            lambda name, seen: (
                f"{name} reaches only {seen.largest:.3g}; FP16 has its full 11 bits from {HALF_NORMAL:.1e} on"
            ),
        )
        for node in model.graph:
            place = SENSITIVE.get(node.op_type)
            value = node.inputs[place] if place is not None and len(node.inputs) > place else None
            seen = None if value is None else self.statistics.get(value.name)
            if value is None or seen is None or not 0 < seen.smallest < HALF_NORMAL:
                continue
            reason = f"{node.op_type} of {value.name}, as small as {seen.smallest:.3g}, where FP16 has few bits"
            found.setdefault(node.name, reason)
            if value.producer() is not None:
                found.setdefault(value.producer().name, reason)
        return found

    def _around(
        self, model: Any, wrong: Callable[[Statistics], bool], reason: Callable[[str, Statistics], str]
    ) -> dict[str, str]:
        """The producers and users of tensors that are wrong; a tensor stays float32 only between nodes that do."""
        found: dict[str, str] = {}
        for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
            seen = self.statistics.get(value.name)
            if seen is None or not wrong(seen):
                continue
            nodes = [value.producer()] if value.producer() is not None else []
            for node in (*nodes, *(use.node for use in value.uses())):
                if node.op_type not in ("Shape", "Size"):
                    found.setdefault(node.name, reason(value.name, seen))
        return found

    def _prune(self, candidates: Mapping[str, str]) -> None:
        """Drop candidates that are not needed: halves first, then single ones."""
        waiting = [list(candidates)]
        while waiting:
            group = waiting.pop()
            without = {node: reason for node, reason in self.kept.items() if node not in group}
            if passes(self.fidelity(without)):
                self.kept = without
            elif len(group) > 1:
                middle = len(group) // 2
                waiting += [group[:middle], group[middle:]]

    def _bisect(self, model: Any, found: Fidelity) -> None:
        """Add nodes until the graph passes: each time the last node of the shortest beginning that suffices."""
        order = [node.name for node in model.graph if node.name not in self.kept]
        everything = self.kept | dict.fromkeys(order, "what the nodes lose in FP16 adds up")
        if not passes(self.fidelity(everything)):
            raise CalibrationError(
                f"{self.graph} in FP16 has a cosine of {found.cosine:.5f}, and no better with every node in float32: "
                "its inputs or outputs do not fit FP16; keep them in float32 in the recipe"
            )
        end = len(order)
        while not passes(found):
            if not end:  # what single nodes lose adds up: no few of them are to blame
                self.kept = everything
                return
            low, high = 0, end  # the first `low` nodes do not suffice, the first `high` do
            while high - low > 1:
                middle = (low + high) // 2
                enough = passes(self.fidelity(self.kept | dict.fromkeys(order[:middle], "-")))
                low, high = (low, middle) if enough else (middle, high)
            end = high - 1
            self.kept[order[end]] = f"in FP16 the outputs have a cosine of {found.cosine:.5f} with float32's"
            found = self.fidelity(self.kept)
