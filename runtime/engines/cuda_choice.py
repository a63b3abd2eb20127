"""Which engine runs a bundle on a GPU, and opening its graphs there."""

import os
import sys
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vocabseg.runtime.engines import Choice
from vocabseg.runtime.errors import BundleError, EngineError, VocabsegError

if TYPE_CHECKING:
    from vocabseg.runtime.bundle import Bundle
    from vocabseg.runtime.cuda import Device
    from vocabseg.runtime.cuda_streams import Stream
    from vocabseg.runtime.engines.device import DeviceGraph

# Engine name -> precisions on a GPU, the ones taken without a wish first.
GPU_ENGINES = {
    "tensorrt": ("float16", "bfloat16", "float32", "int8", "fp8"),
    "onnxruntime": ("float16", "float32"),
}
DEFAULTS = {"tensorrt": ("float16", "bfloat16", "float32"), "onnxruntime": ("float16", "float32")}
# The graphs that run once or more for every image; text may run on the CPU.
VISION = ("proposal", "image_encoder")


@cache
def gpu_present() -> bool:
    """Whether this machine seems to have an NVIDIA GPU that this process may use; nothing is imported or opened."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").is_file()
    return any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg"))


def choose_gpu(engine: str | None, device: str, precision: str | None, bundle: "Bundle | None") -> Choice:
    """The engine for "cuda" or "cuda:N": the one asked for, else TensorRT where there are plans, else ONNX Runtime.

    Without a wish the precision is float16 where the bundle has it. Raises EngineError or BundleError that says what
    is missing and how it is had.
    """
    from vocabseg.runtime.cuda import open_device, parse_device
    from vocabseg.runtime.kernels.cuda import kernels_fatbin

    if engine is not None and engine not in GPU_ENGINES:
        raise EngineError(f"the engine {engine!r} does not run on a GPU: use {' or '.join(GPU_ENGINES)}")
    if precision is not None and not any(precision in GPU_ENGINES[name] for name in _names(engine)):
        offered = dict.fromkeys(each for name in _names(engine) for each in GPU_ENGINES[name])
        raise EngineError(f"there is no precision {precision!r} on a GPU: use one of {', '.join(offered)}")
    opened = open_device(parse_device(device))
    kernels_fatbin()  # an installation without kernels is told before anything is opened
    failures: list[VocabsegError] = []
    for name in _names(engine):
        wanted = DEFAULTS[name] if precision is None else (precision,)
        for each in wanted:
            if each not in GPU_ENGINES[name]:
                continue
            try:
                _check(name, each, opened, bundle)
            except VocabsegError as error:
                failures.append(error)
                continue
            reason = "it was asked for" if engine else _REASONS[name].format(failure=failures[0] if failures else "")
            if precision is None and each == "float32":
                reason += "; in float32, since the bundle has no FP16 graphs (`vocabseg build` makes them)"
            return Choice(name=name, device=f"cuda:{opened.ordinal}", precision=each, reason=reason)
    raise failures[0] if engine or len(failures) == 1 else failures[-1]


_REASONS = {
    "tensorrt": "the bundle has plans for this GPU, and TensorRT runs them fastest",
    "onnxruntime": "it is installed, and TensorRT cannot run this bundle here ({failure})",
}


def _names(engine: str | None) -> tuple[str, ...]:
    return (engine,) if engine else tuple(GPU_ENGINES)


def _check(name: str, precision: str, device: "Device", bundle: "Bundle | None") -> None:
    """Raise what keeps an engine from running the bundle's vision graphs."""
    if name == "tensorrt":
        from vocabseg.runtime.engines.plans import find_plan
        from vocabseg.runtime.engines.tensorrt_package import package_info

        package = package_info()
        if bundle is not None:
            for graph in VISION:
                find_plan(bundle, graph, precision, device, package)
        return
    if find_spec("onnxruntime") is None:
        raise EngineError("the package onnxruntime is not installed: pip install 'vocabseg[gpu]'")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise EngineError(
            "the installed ONNX Runtime knows no GPU: pip uninstall onnxruntime, then pip install 'vocabseg[gpu]'"
        )
    if bundle is not None:
        for graph in VISION:
            onnxruntime_graph(bundle, graph, precision)


def onnxruntime_graph(bundle: "Bundle", graph: str, precision: str) -> Path:
    """The file that ONNX Runtime runs: in FP16 the one with its own operators, if the bundle has it."""
    if precision == "float16" and graph in bundle.manifest.graphs_in("float16-onnxruntime"):
        precision = "float16-onnxruntime"
    return bundle.graph_path(graph, precision)


def open_graph(device: "Device", bundle: "Bundle", name: str, choice: Choice, stream: "Stream") -> "DeviceGraph":
    """Open a graph on the engine that was chosen, for work on `stream`; raises EngineError or BundleError."""
    if choice.name == "tensorrt":
        from vocabseg.runtime.engines.scratch import scratch_of
        from vocabseg.runtime.engines.tensorrt import TensorRtGraph

        return TensorRtGraph(bundle, name, choice.precision, device, scratch_of(device))
    from vocabseg.runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaGraph

    path = onnxruntime_graph(bundle, name, choice.precision)
    return OnnxRuntimeCudaGraph(device, path, choice.precision, stream)


def can_open(device: "Device", bundle: "Bundle", graph: str, choice: Choice) -> bool:
    """Whether the chosen engine has this graph; text encoders may be missing."""
    try:
        if choice.name == "tensorrt":
            from vocabseg.runtime.engines.plans import find_plan
            from vocabseg.runtime.engines.tensorrt_package import package_info

            find_plan(bundle, graph, choice.precision, device, package_info())
        else:
            onnxruntime_graph(bundle, graph, choice.precision)
    except (EngineError, BundleError):
        return False
    return True


@cache
def tell_fallback(reason: str) -> None:
    """Say once that a GPU is there and not used, and why."""
    warnings.warn(f"there is a GPU, but the CPU is used: {reason}", RuntimeWarning, stacklevel=4)
