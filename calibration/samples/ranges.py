"""The ranges of a bundle's tensors over many images; saved as they grow, so that a stopped run can go on."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.calibration.graphs.linear_nodes import linear_nodes, load_graph
from vocabseg.calibration.observe.statistics import Statistics, pack, unpack
from vocabseg.calibration.observe.tensor_observer import MEMORY, TensorObserver, float_tensors
from vocabseg.calibration.samples.calibration_images import CalibrationImage, identity
from vocabseg.calibration.samples.feeds import FeedMaker, ImageFeeds, filled
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.files import atomic_write
from vocabseg.runtime.progress import Progress, silent

# Graphs that work on images; the text encoder runs once per class name and stays as it is.
GRAPHS = ("image_encoder", "proposal")
# Images between two writes of the state.
IMAGES_PER_SAVE = 8
# The first so many images are observed in every float tensor, for FP16; the others only in the inputs of linear nodes.
WIDE = 8
# Of the state file; raise it when other things are recorded.
VERSION = 2

Ranges = dict[str, dict[str, Statistics]]


def observe(
    bundle: Bundle,
    images: Sequence[CalibrationImage],
    seed: int,
    state: Path | None = None,
    progress: Progress = silent,
    notify: Callable[[str], None] = lambda line: None,
    save_every: int = IMAGES_PER_SAVE,
    memory: int = MEMORY,
) -> Ranges:
    """Statistics by graph and tensor over `images`.

    What is done is saved to the file `state` after every `save_every` images, and a run over the same bundle, images
    and seed goes on from there; the result is that of an undisturbed run. `notify` reports either case.
    """
    depends_on = _dependencies(bundle, images, seed)
    found, done = _read(state, depends_on, notify)
    if done == len(images):
        return found
    maker = FeedMaker(bundle, seed)
    observers = {graph: _observers(bundle, graph, memory) for graph in GRAPHS}
    while done < len(images):
        size = min(save_every, WIDE - done) if done < WIDE else save_every
        feeds: list[ImageFeeds] = []
        for number, image in enumerate(images[done : done + size], start=done):
            progress("looking at images", number, len(images))
            feeds.append(maker.feeds(number, image))
        for graph, (narrow, wide) in observers.items():
            progress(f"ranges in {graph}", done, len(images))
            observer = wide if done < WIDE else narrow
            observer.observe(filled(feeds, graph), found.setdefault(graph, {}))
        done += len(feeds)
        if state is not None:
            _write(state, depends_on, found, done)
    progress("ranges are known", len(images), len(images))
    return found


def _observers(bundle: Bundle, graph: str, memory: int) -> tuple[TensorObserver, TensorObserver]:
    """For most images, and for the first ones, which are observed in every float tensor."""
    path = bundle.graph_path(graph)
    model = load_graph(path)
    inputs = [node.activation for node in linear_nodes(model)]
    sources = {value.name: node.op_type for node in model.graph for value in node.outputs}
    channels = [name for name in inputs if sources.get(name) == "LayerNormalization"]
    every = [*inputs, *float_tensors(path)]
    return TensorObserver(path, inputs, channels, memory), TensorObserver(path, every, channels, memory)


def _dependencies(bundle: Bundle, images: Sequence[CalibrationImage], seed: int) -> dict[str, Any]:
    """Everything the ranges depend on."""
    manifest = bundle.manifest
    return {
        "version": VERSION,
        "graphs": {graph: bundle.graph(graph).digest() for graph in GRAPHS},
        "input": repr(manifest.input),
        "region": repr(manifest.region),
        "images": identity(images),
        "seed": seed,
    }


def _read(state: Path | None, depends_on: Mapping[str, Any], notify: Callable[[str], None]) -> tuple[Ranges, int]:
    if state is None or not state.is_file():
        return {}, 0
    try:
        with np.load(state, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(str(arrays.pop("head")))
        if head["identity"] != depends_on:
            notify(f"{state} is for another bundle, other images or another seed: starting again")
            return {}, 0
        found = {graph: unpack(_under(f"{graph}:", arrays)) for graph in head["graphs"]}
    except (OSError, ValueError, KeyError) as error:
        notify(f"{state} cannot be read ({error}): starting again")
        return {}, 0
    notify(f"the ranges of {head['done']} images are known already: going on from there")
    return found, int(head["done"])


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _write(state: Path, depends_on: Mapping[str, Any], found: Ranges, done: int) -> None:
    head = json.dumps({"identity": depends_on, "done": done, "graphs": list(found)})
    arrays = {f"{graph}:{key}": array for graph, one in found.items() for key, array in pack(one).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, head=np.array(head), **arrays)  # type: ignore[arg-type]
    with atomic_write(state) as file:
        file.write(buffer.getvalue())
