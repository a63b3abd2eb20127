"""A bundle's recipe for FP16: the package's own, plus what each graph needs to stay in float32."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.calibration.observe.tensor_observer import TensorObserver, float_tensors
from vocabseg.calibration.samples.feeds import text_feed
from vocabseg.calibration.samples.ranges import GRAPHS, Ranges
from vocabseg.calibration.search.fidelity import Comparator
from vocabseg.calibration.search.half_search import HalfSearch
from vocabseg.calibration.search.journal import Journal
from vocabseg.export.half.recipe import GraphRecipe, Recipe, default_recipe
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.progress import Progress
from vocabseg.runtime.text.vocabulary import Vocabulary


def half_recipe(
    bundle: Bundle,
    ranges: Ranges,
    comparator: Callable[[str], Comparator],
    vocabulary: Vocabulary,
    journal: Journal,
    progress: Progress,
) -> tuple[Recipe, list[str]]:
    """The recipe for every graph of a bundle, and what had to be added to the package's own, in words.

    `comparator` returns the one for a graph that works on images; text encoders are compared on the names of
    `vocabulary`.
    """
    base = default_recipe("float16")
    graphs, notes = dict(base.graphs), []
    for name in bundle.manifest.graphs:
        path = bundle.graph_path(name)

        def repair(name: str = name, path: Path = path) -> GraphRecipe:
            if name in GRAPHS:
                return HalfSearch(name, path, ranges[name], comparator(name), base, progress).repair()
            # The same names for ranges and comparison, since they are what the encoder will be used on.
            feeds = [text_feed(bundle, name, vocabulary)]
            statistics: dict[str, Statistics] = {}
            TensorObserver(path, float_tensors(path)).observe(feeds, statistics)
            return HalfSearch(name, path, statistics, Comparator(path, feeds), base, progress).repair()

        found = journal.recall(f"float16/{name}", GraphRecipe, repair)
        added = found.keep[len(base.graph(name).keep) :]
        if added:  # node names are those of this very graph
            graphs[name] = msgspec.structs.replace(found, made_for=bundle.graph(name).digest())
            notes += [f"float16, {name}: {keep.node}: {keep.reason}" for keep in added]
    return msgspec.structs.replace(base, graphs=graphs), notes
