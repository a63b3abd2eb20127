"""A bundle's recipe for FP16: the package's own, with what each graph needs beside."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from vocabseg.calibration.feeds import text_feeds
from vocabseg.calibration.fidelity import Judge
from vocabseg.calibration.half_search import HalfSearch, describe
from vocabseg.calibration.observe import Feed, Observer, float_tensors
from vocabseg.calibration.ranges import GRAPHS, Ranges
from vocabseg.calibration.statistics import Statistics
from vocabseg.export.half.recipe import GraphRecipe, Recipe, default_recipe
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary

Progress = Callable[[str, int, int], None]
Remember = Callable[[str, type[GraphRecipe], Callable[[], GraphRecipe]], GraphRecipe]


def half_recipe(
    bundle: Bundle,
    ranges: Ranges,
    judges: Callable[[str], Judge],
    vocabulary: Vocabulary,
    remember: Remember,
    progress: Progress,
) -> tuple[Recipe, list[str]]:
    """The recipe for every graph of a bundle, and what had to be added to the package's own, in words.

    `judges` gives the judge of a graph that works on images; text encoders are judged on the names of `vocabulary`.
    """
    base = default_recipe("float16")
    graphs, notes = dict(base.graphs), []
    for name in bundle.manifest.graphs:
        path = bundle.graph_path(name)

        def repair(name: str = name, path: Path = path) -> GraphRecipe:
            if name in GRAPHS:
                statistics, judge = ranges[name], judges(name)
            else:
                statistics, judge = _text(bundle, name, vocabulary)
            return HalfSearch(name, path, statistics, judge, base, progress).repair()

        found = remember(f"float16/{name}", GraphRecipe, repair)
        added = describe(found, base.graph(name))
        if added:  # node names are those of this very graph
            graphs[name] = msgspec.structs.replace(found, made_for=bundle.graph(name).digest())
            notes += [f"float16, {name}: {line}" for line in added]
    return msgspec.structs.replace(base, graphs=graphs), notes


def _text(bundle: Bundle, name: str, vocabulary: Vocabulary) -> tuple[dict[str, Statistics], Judge]:
    """Ranges and a judge of a text encoder: the same names for both, since they are what it will be asked for."""
    feed: Feed = text_feeds(Segmenter(bundle, "cpu", None, "float32"), vocabulary)[name]
    path = bundle.graph_path(name)
    statistics: dict[str, Statistics] = {}
    Observer(path, float_tensors(path)).observe([feed], statistics)
    return statistics, Judge(path, [feed])
