"""Engines: a graph made runnable on one device, behind one small interface."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from vocabseg.runtime.bundle.plans import BUILT_FROM, TITLES

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.arrays import DeviceArray
    from vocabseg.runtime.cuda.streams import Stream

Arrays = dict[str, np.ndarray]


class Runnable(Protocol):
    """One graph, ready to run on host arrays."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name for inputs by name; the arrays are C-contiguous, and floats are float32."""
        ...


class KeyedRunnable(Runnable, Protocol):
    """A Runnable whose results may be cached under `key`, which differs between engines that compute other values."""

    @property
    def key(self) -> str: ...


class DeviceGraph(Protocol):
    """One graph, ready to run on device arrays."""

    @property
    def input_dtypes(self) -> Mapping[str, np.dtype]: ...

    @property
    def output_dtypes(self) -> Mapping[str, np.dtype]: ...

    def run(self, inputs: Mapping[str, "DeviceArray"], outputs: Mapping[str, "DeviceArray"], stream: "Stream") -> None:
        """Enqueue the graph on `stream`; the caller must not modify inputs and outputs until it is done.

        Raises EngineError for unsupported shapes and DeviceMemoryError if memory runs out.
        """
        ...

    def close(self) -> None: ...


# Engines that do not run the graphs named like their precision. OpenVINO converts float32 graphs to bfloat16 itself.
# ONNX Runtime has no FP16 arithmetic on x86: there it checks FP16 graphs in float32 with rounding; on a GPU it has
# operations of its own.
VARIANTS = {
    ("openvino", "cpu", "bfloat16"): "float32",
    ("onnxruntime", "cpu", "float16"): "float16-rounded",
    ("onnxruntime", "cuda", "float16"): "float16-onnxruntime",
} | {(engine, "cuda", precision): graphs for engine in TITLES for precision, graphs in BUILT_FROM.items()}

# Precisions whose products have 8-bit operands while all else stays float; calibration writes their graphs.
QUANTISED = ("int8", "fp8")

# Graphs that run in bfloat16; others stay in float32. Mask logits decide single pixels, and text is encoded once: in
# bfloat16 the demo model's proposals change 0.3 % of all labels (2.5 % in the worst scene), its embeddings 0.05 %.
BFLOAT16_GRAPHS = ("image_encoder",)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine runs a bundle, where and in which precision, and why.

    `literal`: a quantised graph is computed on the CPU as it is written, in float32 between its roundings.
    """

    name: str
    device: str
    precision: str
    reason: str
    literal: bool = False

    @property
    def key(self) -> str:
        """Short name under which results of this engine may be cached, such as "openvino-cpu-float32"."""
        return f"{self.name}-{self.device}-{self.precision}" + "-literal" * self.literal

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def variant(self) -> str:
        """Which of the bundle's graphs are run: the precision for `Bundle.graph`."""
        return VARIANTS.get((self.name, self.device.partition(":")[0], self.precision), self.precision)

    def for_graph(self, graph: str) -> "Choice":
        """The choice for one of the bundle's graphs: some stay in float32 (`graph_precision`)."""
        return msgspec.structs.replace(self, precision=graph_precision(graph, self.precision))


def graph_precision(graph: str, precision: str) -> str:
    """The precision in which a CPU engine of `precision` runs a graph of the bundle, such as "proposal"."""
    return "float32" if precision == "bfloat16" and graph not in BFLOAT16_GRAPHS else precision
