"""Run a graph on real inputs and collect what values its tensors take, in bounded memory."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.calibration.observe.statistics import Statistics
from vocabseg.runtime.threads import thread_count

Feed = Mapping[str, np.ndarray]

# Bytes of tensors that one run may return.
MEMORY = 768_000_000


class TensorObserver:
    """Computes a graph with ONNX Runtime on the CPU and collects statistics of its tensors.

    `tensors` are names of float tensors; for those in `channels` the largest magnitude per channel of the last axis is
    collected too. Feeds are inputs by name, batch first; they are split so that memory stays bounded.
    """

    def __init__(self, path: str | Path, tensors: Iterable[str], channels: Iterable[str] = (), memory: int = MEMORY):
        self.path = Path(path)
        self.tensors = list(dict.fromkeys(tensors))
        self.channels = frozenset(channels)
        self.memory = memory

    def observe(self, feeds: Sequence[Feed], into: dict[str, Statistics]) -> None:
        """Add the values of all tensors on `feeds` to their statistics."""
        for name in self.tensors:
            into.setdefault(name, Statistics())
        for feed in feeds:
            for name in sorted(feed.keys() & set(self.tensors)):
                into[name].update(feed[name], name in self.channels)
        inner = [name for name in self.tensors if not any(name in feed for feed in feeds)]
        if not feeds or not inner:
            return
        for names, batch in self._groups(inner, feeds[0]):
            session = instrumented(self.path, names)
            for feed in feeds:
                for start in range(0, _items(feed), batch):
                    part = {name: array[start : start + batch] for name, array in feed.items()}
                    for name, array in zip(names, session.run(names, part), strict=True):
                        into[name].update(np.asarray(array), name in self.channels)

    def _groups(self, names: list[str], feed: Feed) -> list[tuple[list[str], int]]:
        """Tensors to return together, and how many items of a batch at a time."""
        shapes = instrumented(self.path, names, shapes=True).run(None, dict(feed))
        sizes = [4 * int(np.prod(shape, dtype=np.int64)) / _items(feed) for shape in shapes]
        if sum(sizes) <= self.memory:
            return [(names, max(1, int(self.memory // max(sum(sizes), 1))))]
        groups: list[list[str]] = [[]]
        room = float(self.memory)
        for name, size in zip(names, sizes, strict=True):
            if groups[-1] and size > room:
                groups.append([])
                room = float(self.memory)
            groups[-1].append(name)
            room -= size
        return [(group, 1) for group in groups]


def float_tensors(path: str | Path) -> list[str]:
    """The tensors inside a graph that hold float32, in the graph's order."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    names = [name for node in graph.node for name in node.output if name]
    types = {output.name: output.type for output in instrumented(path, names).get_outputs()}
    return [name for name in names if types[name] == "tensor(float)"]


def instrumented(path: str | Path, names: Sequence[str], shapes: bool = False) -> Any:
    """A session of the graph at `path` whose outputs are the given tensors, or with `shapes` their shapes, in order.

    The changed graph is never written; the weights are read from where they are.
    """
    import onnx

    path = Path(path)
    model = onnx.load(path, load_external_data=False)
    del model.graph.output[:]
    for name in names:
        if shapes:
            model.graph.node.append(onnx.helper.make_node("Shape", [name], [f"{name}/shape"]))
        # Without a type: ONNX Runtime infers it.
        model.graph.output.append(onnx.ValueInfoProto(name=f"{name}/shape" if shapes else name))
    return open_session(model.SerializeToString(), path.parent)


def open_session(model: bytes | str | Path, weights: Path | None = None, literal: bool = False) -> Any:
    """An ONNX Runtime session on the CPU; a serialised model's external weights lie in the folder `weights`.

    With `literal`, pairs of QuantizeLinear and DequantizeLinear are computed as written, in float32: the extended
    optimisations of ONNX Runtime 1.32 turn a graph with E4M3 in it into nonsense.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.log_severity_level = 4  # what goes wrong is raised
    options.enable_cpu_mem_arena = False  # the arena would keep the largest run's memory forever
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _items(feed: Feed) -> int:
    return max(len(array) for array in feed.values())
