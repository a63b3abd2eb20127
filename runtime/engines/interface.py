"""Engines: a graph made runnable on one device, behind one small interface."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.arrays import DeviceArray
    from vocabseg.runtime.cuda.streams import Stream

Arrays = dict[str, np.ndarray]


class Runnable(Protocol):
    """One graph, ready to run on arrays of the host."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name for the given inputs by name; C-contiguous arrays, float32 where they are floats."""
        ...


class KeyedRunnable(Runnable, Protocol):
    """A Runnable whose results may be cached under `key`: engines that compute other values have another one."""

    @property
    def key(self) -> str: ...


class DeviceGraph(Protocol):
    """One graph, ready to run on arrays of a GPU."""

    @property
    def input_dtypes(self) -> Mapping[str, np.dtype]: ...

    @property
    def output_dtypes(self) -> Mapping[str, np.dtype]: ...

    def run(self, inputs: Mapping[str, "DeviceArray"], outputs: Mapping[str, "DeviceArray"], stream: "Stream") -> None:
        """Start the graph on `stream`; inputs and outputs stay as they are until it is done.

        Raises EngineError for shapes that it cannot take and DeviceMemoryError where memory runs out.
        """
        ...

    def close(self) -> None: ...


# Where an engine in a precision does not run the graphs of that name. OpenVINO takes float32 graphs to bfloat16 itself;
# ONNX Runtime has no FP16 arithmetic on x86, and checks in float32, with rounding, what FP16 graphs compute on a GPU,
# where it has operations of its own.
VARIANTS = {
    ("openvino", "cpu", "bfloat16"): "float32",
    ("onnxruntime", "cpu", "float16"): "float16-rounded",
    ("onnxruntime", "cuda", "float16"): "float16-onnxruntime",
}

# Precisions in which products have eight-bit operands and all else stays float; calibration writes their graphs.
QUANTISED = ("int8", "fp8")

# What bfloat16 is for; other graphs stay in float32. Mask logits decide single pixels, and text is encoded once: in
# bfloat16 the demo model's proposals change 0.3 % of all labels (2.5 % of the worst scene's), its embeddings 0.05 %.
BFLOAT16_GRAPHS = ("image_encoder",)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine runs a bundle, where and in which precision, and why."""

    name: str
    device: str
    precision: str
    reason: str

    @property
    def key(self) -> str:
        """Short name under which results of this engine may be cached, such as "openvino-cpu-float32"."""
        return f"{self.name}-{self.device}-{self.precision}"

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def variant(self) -> str:
        """Which of the bundle's graphs are run: `Bundle.graph`'s precision."""
        return VARIANTS.get((self.name, self.device.partition(":")[0], self.precision), self.precision)

    def for_graph(self, graph: str) -> "Choice":
        """The choice for one of the bundle's graphs: some keep to float32 (`graph_precision`)."""
        return msgspec.structs.replace(self, precision=graph_precision(graph, self.precision))


def graph_precision(graph: str, precision: str) -> str:
    """The precision in which a CPU engine of `precision` runs a graph of the bundle, such as "proposal"."""
    return "float32" if precision == "bfloat16" and graph not in BFLOAT16_GRAPHS else precision
