"""Graphs on an NVIDIA GPU through ONNX Runtime's CUDA provider: device pointers in and out, our stream, CUDA graphs.

Nothing is copied through the host, and only arithmetic on sizes runs on the CPU: where ONNX Runtime would fall back
silently, opening the graph fails and the error says what to install.
"""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.engines.interface import VARIANTS
from vocabseg.runtime.engines.onnxruntime_libraries import check_libraries
from vocabseg.runtime.engines.onnxruntime_session import BoundSession, session_error
from vocabseg.runtime.errors import EngineError

CUDA = "CUDAExecutionProvider"

# These names were read from the binaries of onnxruntime-gpu 1.31.1 (libonnxruntime_providers_cuda.so for the provider,
# libonnxruntime.so for the others). The provider rejects a misspelt name; a session or run silently ignores it.
PROVIDER_OPTIONS = {
    "use_tf32": "0",  # float32 islands exist for their precision
    "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search takes seconds per shape, and much memory
    "cudnn_conv_use_max_workspace": "1",
    "arena_extend_strategy": "kSameAsRequested",  # doubling would take twice what the largest batch needs
    "do_copy_in_default_stream": "1",
    "prefer_nhwc": "1",  # the layout that tensor cores need for convolutions
    "enable_skip_layer_norm_strict_mode": "1",  # normalisation sums in float32
}
SESSION_OPTIONS = {
    "session.disable_cpu_ep_fallback": "1",
    "session.use_device_allocator_for_initializers": "1",  # weights stay out of the arena, which grows in steps
}
# Levels of logging. What goes wrong in a session is raised, and need not be on standard error, too.
ERRORS, NOTHING = 3, 4
ASSIGNMENTS = "session.record_ep_graph_assignment_info"

# What a graph may compute on the CPU: sizes, and positions derived from sizes.
SIZE_ARITHMETIC = frozenset((
    "Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Add", "Sub", "Mul", "Div",
    "Range", "Constant", "ConstantOfShape", "Min", "Max", "Equal", "Where", "Sin", "Cos", "Expand", "Transpose",
))  # fmt: skip


def graph_path(bundle: Bundle, graph: str, precision: str) -> Path:
    """The file to run: in FP16 the one with ONNX Runtime's own operations, if the bundle has it."""
    own = VARIANTS.get(("onnxruntime", "cuda", precision), precision)
    return bundle.graph_path(graph, own if graph in bundle.manifest.graphs_in(own) else precision)


def check_provider() -> None:
    """Raise EngineError if ONNX Runtime is not installed, has no GPU support, or cannot load what that needs."""
    if find_spec("onnxruntime") is None:
        raise EngineError("the package onnxruntime is not installed: pip install 'vocabseg[gpu]'")
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        raise EngineError(
            "the installed ONNX Runtime has no GPU support: pip uninstall onnxruntime, then pip install 'vocabseg[gpu]'"
        )
    check_libraries(onnxruntime)


class OnnxRuntimeCudaGraph:
    """One ONNX graph in a session of the CUDA provider; a `DeviceGraph`.

    The session is bound to `stream`, or to a new one if None; runs on other streams are chained to it by events.
    `cuda_graphs` replays what was run twice with the same shapes and addresses; ONNX Runtime may block the host for
    such a replay. Calls from several threads are serialised.

    Raises EngineError if the provider, a library that it needs, or a precision is missing.
    """

    def __init__(
        self,
        device: Device,
        path: str | Path,
        precision: str = "float16",
        stream: Stream | None = None,
        cuda_graphs: bool = True,
    ):
        if precision not in ("float32", "float16"):
            raise EngineError(f"ONNX Runtime does not run {precision} graphs on a GPU here: use float32 or float16")
        self.path = Path(path)
        self.device = device
        self.stream = stream or device.stream()
        with device.activate():
            session = open_session(self.path, device.ordinal, self.stream.handle, cuda_graphs)
        self._session: BoundSession | None = BoundSession(session, "cuda", device.ordinal, cuda_graphs)
        self.input_dtypes = self._session.input_dtypes
        self.output_dtypes = self._session.output_dtypes

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream) -> None:
        """Enqueue the graph on `stream`; the caller must not modify inputs and outputs until it is done.

        Raises EngineError for names, types or shapes that the graph rejects, DeviceMemoryError if memory runs out.
        """
        if self._session is None:
            raise EngineError(f"the graph {self.path} is closed: open it again")
        with self.device.activate():
            other = stream.handle != self.stream.handle
            if other:
                self.stream.wait(stream.record())
            self._session.run(inputs, outputs)
            if other:
                stream.wait(self.stream.record())

    def close(self) -> None:
        """Free the graph's memory."""
        self._session = None


def open_session(path: Path, ordinal: int, stream: int, cuda_graphs: bool) -> Any:
    """A session of the CUDA provider on the stream with this handle; raises EngineError if that is not possible."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"ONNX Runtime cannot be imported ({error}): pip install 'vocabseg[gpu]'") from None
    check_provider()
    onnxruntime.set_default_logger_severity(ERRORS)  # it warns that CUDA is not a plug-in, at every session
    provider = provider_options(ordinal, stream, cuda_graphs)
    try:
        session = _session(onnxruntime, path, provider, SESSION_OPTIONS)
    except EngineError as error:
        if not any(text in str(error) for text in ("CPU EP", "graph capture")):
            raise
        # Graphs with arithmetic on sizes, which channels-last layout would put on the GPU, with copies in between.
        provider["prefer_nhwc"] = "0"
        session = _session(onnxruntime, path, provider, {**_without_fallback_rule(), ASSIGNMENTS: "1"})
        check_assignments(path, session.get_provider_graph_assignment_info())
    if CUDA not in session.get_providers():
        raise EngineError(
            "ONNX Runtime cannot use the GPU: its CUDA provider does not start: see its log, and whether the driver is "
            "new enough for its CUDA version"
        )
    return session


def provider_options(ordinal: int, stream: int, cuda_graphs: bool) -> dict[str, str]:
    """The CUDA provider's options, all as strings."""
    return {
        **PROVIDER_OPTIONS,
        "device_id": str(ordinal),
        "user_compute_stream": str(stream),
        "enable_cuda_graph": "1" if cuda_graphs else "0",
    }


def check_assignments(path: Path, assigned: Iterable[Any]) -> None:
    """Raise EngineError if anything but arithmetic on sizes was assigned to the CPU."""
    left = sorted({
        node.op_type
        for part in assigned
        if part.ep_name != CUDA
        for node in part.get_nodes()
        if node.op_type not in SIZE_ARITHMETIC
    })  # fmt: skip
    if left:
        raise EngineError(
            f"ONNX Runtime would run {', '.join(left)} of {path} on the CPU: build the graphs for it "
            "(vocabseg build BUNDLE --precision fp16)"
        )


def _without_fallback_rule() -> dict[str, str]:
    return {name: value for name, value in SESSION_OPTIONS.items() if name != "session.disable_cpu_ep_fallback"}


def _session(onnxruntime: Any, path: Path, provider: Mapping[str, str], settings: Mapping[str, str]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = NOTHING
    for name, value in settings.items():
        options.add_session_config_entry(name, value)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[(CUDA, dict(provider))])
    except Exception as error:
        raise session_error(f"ONNX Runtime cannot open {path} on the GPU", error) from error
