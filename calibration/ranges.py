"""The ranges of a bundle's tensors over many images; kept on disk as they grow, so that a stopped run goes on."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.calibration.feeds import FeedMaker, ImageFeeds
from vocabseg.calibration.images import Chosen
from vocabseg.calibration.images import identity as images_identity
from vocabseg.calibration.observe import MEMORY, Observer, float_tensors
from vocabseg.calibration.statistics import Statistics, pack, unpack
from vocabseg.calibration.targets import load_graph, targets
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.files import atomic_write

# Graphs that work on images; the text encoder runs once per class name and stays as it is.
GRAPHS = ("image_encoder", "proposal")
# Images between two writes of the state.
IMAGES_PER_SAVE = 8
# On so many images every float tensor is looked at, for FP16; on the others only what eight bits would multiply.
WIDE = 8
# Of the file; raise it when other things are recorded.
VERSION = 1

Progress = Callable[[str, int, int], None]
Ranges = dict[str, dict[str, Statistics]]


def observe(
    bundle: Bundle,
    images: Sequence[Chosen],
    seed: int,
    state: Path | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
    save_every: int = IMAGES_PER_SAVE,
    memory: int = MEMORY,
) -> Ranges:
    """Statistics by graph and tensor over `images`.

    With `state`, a file, what is done is kept there after every `save_every` images, and a run over the same bundle,
    images and seed goes on from there; the result is that of an undisturbed run. `notify` is told either way.
    """
    report = progress or (lambda what, done, total: None)
    identity = _identity(bundle, images, seed)
    found, done = _read(state, identity, notify or (lambda line: None))
    if done == len(images):
        return found
    maker = FeedMaker(bundle, seed)
    observers = {graph: _observers(bundle, graph, memory) for graph in GRAPHS}
    while done < len(images):
        block = list(enumerate(images))[done : done + min(save_every, _until_wide(done))]
        feeds: list[ImageFeeds] = []
        for image in maker.feeds(block):
            report("looking at images", done + len(feeds), len(images))
            feeds.append(image)
        for graph, (narrow, wide) in observers.items():
            report(f"ranges in {graph}", done, len(images))
            observer = wide if done < WIDE else narrow
            observer.observe(filled(feeds, graph), found.setdefault(graph, {}))
        done += len(block)
        if state is not None:
            _write(state, identity, found, done)
    report("ranges are known", len(images), len(images))
    return found


def _until_wide(done: int) -> int:
    return WIDE - done if done < WIDE else 1 << 30


def filled(feeds: Sequence[ImageFeeds], graph: str) -> list[dict[str, np.ndarray]]:
    """The feeds of a graph; images without a region have no crops."""
    found = [feed.of(graph) for feed in feeds]
    return [feed for feed in found if all(len(array) for array in feed.values())]


def _observers(bundle: Bundle, graph: str, memory: int) -> tuple[Observer, Observer]:
    """For most images, and for the first ones, on which every float tensor is looked at."""
    path = bundle.graph_path(graph)
    model = load_graph(path)
    found = [target.activation for target in targets(model)]
    sources = {value.name: node.op_type for node in model.graph for value in node.outputs}
    channels = [name for name in found if sources.get(name) == "LayerNormalization"]
    return Observer(path, found, channels, memory), Observer(path, [*found, *float_tensors(path)], channels, memory)


def _identity(bundle: Bundle, images: Sequence[Chosen], seed: int) -> dict[str, Any]:
    """What the ranges depend on."""
    manifest = bundle.manifest
    return {
        "version": VERSION,
        "graphs": {graph: bundle.graph(graph).digest() for graph in GRAPHS},
        "input": repr(manifest.input),
        "region": repr(manifest.region),
        "images": images_identity(list(images)),
        "seed": seed,
    }


def _read(state: Path | None, identity: Mapping[str, Any], notify: Callable[[str], None]) -> tuple[Ranges, int]:
    if state is None or not state.is_file():
        return {}, 0
    try:
        with np.load(state, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(str(arrays.pop("head")))
        graphs: Ranges = {graph: unpack(_under(arrays, graph)) for graph in head["graphs"]}
    except (OSError, ValueError, KeyError) as error:
        notify(f"{state} cannot be read ({error}): starting again")
        return {}, 0
    if head["identity"] != identity:
        notify(f"{state} is of another bundle, other images or another seed: starting again")
        return {}, 0
    notify(f"the ranges of {head['done']} images are known already: going on from there")
    return graphs, int(head["done"])


def _under(arrays: Mapping[str, np.ndarray], graph: str) -> dict[str, np.ndarray]:
    prefix = f"{graph}:"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _write(state: Path, identity: Mapping[str, Any], found: Ranges, done: int) -> None:
    head = json.dumps({"identity": identity, "done": done, "graphs": list(found)})
    arrays: dict[str, Any] = {}
    for graph, one in found.items():
        arrays |= {f"{graph}:{key}": array for key, array in pack(one).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, head=np.array(head), **arrays)
    with atomic_write(state) as file:
        file.write(buffer.getvalue())
