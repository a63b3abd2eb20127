"""Graphs in eight bits with ranges from a few inputs: what a builder makes of them does not depend on the figures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vocabseg.calibration.graphs.linear_nodes import ends, linear_nodes, load_graph
from vocabseg.calibration.graphs.quantize import write_quantised
from vocabseg.calibration.graphs.scales import Scheme
from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.calibration.observe.tensor_observer import TensorObserver
from vocabseg.export.half.convert import add_half_graphs, add_plan_graphs
from vocabseg.runtime.bundle.folder import Bundle, open_bundle
from vocabseg.runtime.bundle.manifest import GraphRecord
from vocabseg.runtime.bundle.variants import new_variants


def quantise(path: Path, target: Path, kind: str, feed: Mapping[str, np.ndarray]) -> GraphRecord:
    """The graph at `path` in "int8" or "fp8", with the ranges of one input."""
    model, statistics = load_graph(path), dict[str, Statistics]()
    names = list(dict.fromkeys(node.activation for node in linear_nodes(model)))
    TensorObserver(path, names, names).observe([dict(feed)], statistics)
    return write_quantised(path, target, Scheme(kind=kind, high=ends(model) if kind == "fp8" else ()), statistics)


def add_every_precision(folder: Path) -> Bundle:
    """The bundle in `folder` with the graphs that plans of every precision are built from."""
    bundle = add_half_graphs(open_bundle(folder, verify=False))
    generator = np.random.default_rng(0)
    feeds = {
        "proposal": {"image": generator.normal(size=(1, 3, 192, 256)).astype(np.float32)},
        "image_encoder": {"crops": generator.normal(size=(4, 3, 64, 64)).astype(np.float32)},
    }
    for kind in ("int8", "fp8"):
        with new_variants(folder) as variants:
            for name, record in bundle.manifest.graphs.items():
                if name in feeds:
                    path = variants.place(kind) / f"{name}.onnx"
                    record = quantise(bundle.graph_path(name), path, kind, feeds[name])
                variants.add(kind, name, record)
    bundle = open_bundle(folder, verify=False)
    for precision in ("int8", "fp8", "bfloat16"):
        bundle = add_plan_graphs(bundle, precision)
    return bundle
