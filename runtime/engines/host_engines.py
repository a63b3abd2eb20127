"""A bundle's graphs on a CPU, opened on first use."""

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from vocabseg.runtime.bundle.manifest import output_shapes
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.engines.interface import QUANTISED, Arrays, Choice, Runnable
from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.threads import thread_count

if TYPE_CHECKING:
    from vocabseg.runtime.bundle.folder import Bundle
    from vocabseg.runtime.bundle.manifest import GraphRecord


class GraphSource(NamedTuple):
    """The bundle that a graph is of, and its record there."""

    bundle: "Bundle"
    record: "GraphRecord"

    def check_shapes(self, inputs: Mapping[str, np.ndarray], outputs: Arrays) -> None:
        """Raise BundleError for an output of another shape than the record gives for these inputs."""
        due = output_shapes(self.record, {name: array.shape for name, array in inputs.items()})
        found = {name: array.shape for name, array in outputs.items()}
        if found != due:
            path = self.bundle.folder / self.record.file
            raise BundleError(f"{path} gave outputs of the shapes {found} where {due} are due: export the bundle again")


class Engine:
    """One graph on one engine, opened on first use.

    Calls from several threads are serialised, except on ONNX Runtime with one thread each (`limit_threads`). A forked
    process opens it anew, since the threads of a graph that was open stay behind in the parent.
    """

    def __init__(
        self,
        path: str | Path,
        choice: Choice,
        digest: str | None = None,
        batched: bool = False,
        source: "GraphSource | None" = None,
    ):
        """`digest`, added to the key, distinguishes graphs of one bundle and precision that compute different values.

        `batched`: inputs and outputs hold many samples along their first axis. With `source`, the graph's files and the
        shapes of its outputs must be those on record.
        """
        self.path, self._source = Path(path), source
        self.choice = choice
        self.batched = batched
        self.key = choice.key if digest is None else f"{choice.key}-{digest[:16]}"
        self._opening, self._running = threading.Lock(), threading.Lock()
        self._opened: dict[int, Runnable] = {}  # by number of threads
        self.seconds = 0.0  # spent in runs so far
        _engines.add(self)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the graph on arrays by input name and return all outputs by name; raises EngineError if that fails.

        Raises BundleError if the graph's files were changed, or an output has another shape than on record.
        """
        threads = thread_count()
        runnable = self.open(threads)
        with nullcontext() if threads == 1 and self.choice.name == "onnxruntime" else self._running:
            begin = time.perf_counter()
            try:
                outputs = runnable.run(inputs)
            finally:
                spent = time.perf_counter() - begin
                with self._opening:
                    self.seconds += spent
        if self._source is not None:
            self._source.check_shapes(inputs, outputs)
        return outputs

    def open(self, threads: int) -> Runnable:
        """The graph, ready to run on that many threads; raises EngineError, or BundleError for files that changed."""
        with self._opening:
            if threads not in self._opened:
                read = partial(_open, self.path, self.choice, threads, self.batched)
                source = self._source
                self._opened[threads] = read() if source is None else source.bundle.load(source.record, read)
            return self._opened[threads]

    def open_early(self, threads: int) -> None:
        """As `open`, for a thread that has nobody to tell of errors: the next run raises them."""
        with suppress(Exception):
            self.open(threads)

    def close(self) -> None:
        """Free the graph's memory; the next run reopens it."""
        with self._opening:
            self._opened.clear()

    def abandon(self) -> None:
        """Forget the open graph without freeing it, which would wait for threads that are not there; after a fork."""
        for runnable in self._opened.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(runnable))
        self._opening, self._running, self._opened = threading.Lock(), threading.Lock(), {}


_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_engines):
        engine.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class HostEngines:
    """The engines of a bundle's graphs by name, each created once; thread-safe."""

    def __init__(self, bundle: "Bundle", choice: Choice):
        bundle.graph("image_encoder", choice.variant)  # fails at once if the bundle lacks this precision
        if choice.name == "openvino":
            from vocabseg.runtime.engines.openvino import check_precision

            check_precision(choice.precision)
        self._bundle, self._choice = bundle, choice
        self._engines: dict[str, Engine] = {}
        self._making = threading.Lock()

    def __call__(self, graph: str) -> Engine:
        with self._making:
            if graph not in self._engines:
                self._engines[graph] = self._make(graph)
            return self._engines[graph]

    def _make(self, graph: str) -> Engine:
        bundle = self._bundle
        record = bundle.graph(graph, self._choice.variant)
        digest = None if record.file == bundle.graph(graph).file else record.digest()
        choice = self._choice.for_graph(graph)
        if choice.precision in QUANTISED and record.dtype == "float32":
            # In a quantised bundle: the text encoder, which runs once per name, and graphs that must not be quantised.
            choice = msgspec.structs.replace(choice, precision="float32", literal=False)
        return graph_engine(bundle, record, choice, digest, batched=graph == "image_encoder")


def graph_engine(
    bundle: "Bundle", record: "GraphRecord", choice: Choice, digest: str | None = None, batched: bool = False
) -> Engine:
    """The engine of one of a bundle's graphs."""
    return Engine(bundle.path(record.file), choice, digest, batched, GraphSource(bundle, record))


def open_engine(
    path: str | Path, engine: str | None = None, device: str = "auto", precision: str | None = None
) -> Engine:
    """An engine for the ONNX graph at `path`; raises EngineError as `choose` does."""
    return Engine(path, choose(engine, device, precision))


def _open(path: Path, choice: Choice, threads: int, batched: bool) -> Runnable:
    if choice.name == "openvino":
        from vocabseg.runtime.engines.openvino import OpenVinoGraph

        return OpenVinoGraph(path, choice.precision, threads, batched)
    from vocabseg.runtime.engines.onnxruntime_cpu import OnnxRuntimeGraph

    return OnnxRuntimeGraph(path, threads, literal=choice.literal or choice.precision == "fp8")
