"""Which engine runs a bundle here: the offers, best first, and the first of them that is ready."""

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import BundleError, EngineError, VocabsegError
from vocabseg.runtime.precisions import precision_name

if TYPE_CHECKING:
    from vocabseg.runtime.bundle.folder import Bundle
    from vocabseg.runtime.cuda.device import Device

# The graphs that run once or more for every image; text may run on the CPU.
VISION = ("proposal", "image_encoder")
# Up to here ONNX Runtime runs a model as fast as OpenVINO and opens it half a second sooner (measured with the 11 MB of
# the demo model).
SMALL_MODEL_BYTES = 32_000_000


class Wish(NamedTuple):
    """What the user asked for, and what is known of the bundle that is to run."""

    engine: str | None = None
    precision: str | None = None
    model_bytes: int | None = None
    bundle: "Bundle | None" = None

    @property
    def small(self) -> bool:
        known = self.model_bytes is not None and self.model_bytes <= SMALL_MODEL_BYTES
        return known and self.precision in (None, "float32")


class Offer(NamedTuple):
    """An engine on one kind of device.

    `precisions` are all that it runs there; `defaults` are those taken without a wish, best first. `check` raises
    what keeps it from running a wish in a precision on a device. `reason` says why it is taken unasked.
    """

    name: str
    precisions: tuple[str, ...]
    defaults: tuple[str, ...]
    check: "Callable[[Wish, str, Device | None], None]"
    reason: str


def choose(
    engine: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    model_bytes: int | None = None,
    bundle: "Bundle | None" = None,
) -> Choice:
    """Pick the engine for this machine: the one asked for, else the fastest that is ready.

    "auto" takes the first GPU if there is one; if it cannot be used, a warning says why, once. On a GPU TensorRT comes
    first, then TensorRT for RTX, where the bundle has plans, then ONNX Runtime; on a CPU OpenVINO, then ONNX Runtime,
    and for small models (`model_bytes`, the size of a bundle's graphs) the other way round. Without `precision` a GPU
    runs FP16 where the bundle has it. A CPU runs float32: bfloat16 is faster, but can lose more labels than the parity
    contract allows (docs/precision.md), so it is left to the user.

    Raises EngineError for an unknown or missing engine, an unknown device, or a precision that no engine has there, and
    BundleError where the bundle lacks the graphs.
    """
    known = dict.fromkeys(offer.name for offer in (*ON_CPU, *ON_GPU))
    if engine is not None and engine not in known:
        raise EngineError(f"unknown engine {engine!r}: use one of {', '.join(known)}")
    wish = Wish(engine, precision_name(precision), model_bytes, bundle)
    if device not in ("auto", "cpu"):
        return _on_gpu(wish, device)
    if device == "auto" and gpu_present() and (engine is None or engine in _names(ON_GPU)):
        try:
            return _on_gpu(wish, "cuda")
        except (EngineError, BundleError) as error:
            if engine is not None and engine not in _names(ON_CPU):
                raise
            tell_fallback(str(error))
    if engine is not None and engine not in _names(ON_CPU):
        raise EngineError(f"the engine {engine} needs an NVIDIA GPU: use one of {', '.join(_names(ON_CPU))}")
    return _first(wish, ON_CPU[::-1] if wish.small else ON_CPU, None)


def vision_graphs(bundle: "Bundle") -> list[str]:
    """The graphs of a bundle that run once or more for every image."""
    return [graph for graph in VISION if graph in bundle.manifest.graphs]


def _on_gpu(wish: Wish, device: str) -> Choice:
    from vocabseg.runtime.cuda.device import open_device, parse_device
    from vocabseg.runtime.kernels.device.fatbin import kernels_fatbin

    if wish.bundle is not None and wish.bundle.manifest.per_pixel:
        raise EngineError(f"{wish.bundle.manifest.name} is a per-pixel model, which runs on a CPU only: --device cpu")
    if wish.engine is not None and wish.engine not in _names(ON_GPU):
        raise EngineError(f"the engine {wish.engine!r} does not run on a GPU: use {' or '.join(_names(ON_GPU))}")
    _offered(wish, ON_GPU, "GPU")
    opened = open_device(parse_device(device))
    kernels_fatbin()  # what an installation without kernels lacks is said before anything is opened
    return _first(wish, ON_GPU, opened)


def _first(wish: Wish, offers: Iterable[Offer], device: "Device | None") -> Choice:
    """The first offer that is ready; raises what is in the way of the best one, or of the last if nothing was asked."""
    failures: list[VocabsegError] = []
    for offer in _offered(wish, offers, "CPU" if device is None else "GPU"):
        for precision in (wish.precision,) if wish.precision else offer.defaults:
            try:
                offer.check(wish, precision, device)
            except VocabsegError as error:
                failures.append(error)
                continue
            reason = "it was asked for" if wish.engine else _reason(offer, wish, failures)
            if wish.precision is None and device is not None and precision == "float32":
                reason += "; in float32, since the bundle has no FP16 graphs (`vocabseg build` makes them)"
            place = "cpu" if device is None else f"cuda:{device.ordinal}"
            return Choice(name=offer.name, device=place, precision=precision, reason=reason)
    if device is None and wish.engine is None:
        raise EngineError("no engine is installed: pip install 'vocabseg[cpu]' (OpenVINO and ONNX Runtime)")
    raise failures[0] if wish.engine or len(failures) == 1 else failures[-1]


def _offered(wish: Wish, offers: Iterable[Offer], place: str) -> list[Offer]:
    """The offers that have the engine and the precision asked for; raises EngineError where there is none."""
    named = [offer for offer in offers if wish.engine in (None, offer.name)]
    fitting = [offer for offer in named if wish.precision is None or wish.precision in offer.precisions]
    if not fitting:
        precisions = ", ".join(dict.fromkeys(each for offer in named for each in offer.precisions))
        whose = f"the engine {wish.engine} has" if wish.engine else "there is"
        raise EngineError(f"{whose} no precision {wish.precision!r} on a {place}: use one of {precisions}")
    return fitting


def _reason(offer: Offer, wish: Wish, failures: list[VocabsegError]) -> str:
    if wish.small and offer is ON_CPU[1]:
        return "it is installed and opens a small model fastest"
    return offer.reason.format(failure=failures[0] if failures else "")


def _names(offers: Iterable[Offer]) -> tuple[str, ...]:
    return tuple(offer.name for offer in offers)


def installed(name: str) -> bool:
    """Whether the package of a CPU engine can be imported; it is not imported here."""
    return find_spec(name) is not None


def _check_openvino(wish: Wish, precision: str, device: "Device | None") -> None:
    _check_installed("openvino")
    if precision in ("bfloat16", "int8"):
        from vocabseg.runtime.engines.openvino import check_precision, products_saturate

        check_precision(precision)
        if precision == "int8" and wish.engine is None and products_saturate():
            raise EngineError("OpenVINO has no INT8 arithmetic for a CPU without VNNI")


def _check_onnxruntime(wish: Wish, precision: str, device: "Device | None") -> None:
    _check_installed("onnxruntime")


def _check_installed(name: str) -> None:
    if not installed(name):
        raise EngineError(f"the engine {name} is not installed: pip install {name}")


def _check_tensorrt(engine: str, wish: Wish, precision: str, device: "Device | None") -> None:
    from vocabseg.runtime.bundle.plans import find_plan
    from vocabseg.runtime.engines.tensorrt.package import load_package

    package = load_package(engine)
    if wish.bundle is not None:
        for graph in vision_graphs(wish.bundle):
            find_plan(wish.bundle, graph, precision, device, package.info)


def _check_onnxruntime_gpu(wish: Wish, precision: str, device: "Device | None") -> None:
    from vocabseg.runtime.engines.onnxruntime_cuda import check_provider, graph_path

    check_provider()
    if wish.bundle is not None:
        for graph in vision_graphs(wish.bundle):
            graph_path(wish.bundle, graph, precision)


# Precisions of plans, and those that are taken without a wish.
PLANS = ("float16", "bfloat16", "float32", "int8", "fp8")
# Best first.
ON_GPU = (
    Offer(
        "tensorrt",
        PLANS,
        PLANS[:3],
        partial(_check_tensorrt, "tensorrt"),
        "the bundle has plans for this GPU, and TensorRT runs them fastest",
    ),
    Offer(
        "tensorrt-rtx",
        PLANS,
        PLANS[:3],
        partial(_check_tensorrt, "tensorrt-rtx"),
        "the bundle has plans for this GPU's generation, and TensorRT cannot run it here ({failure})",
    ),
    Offer(
        "onnxruntime",
        ("float16", "float32"),
        ("float16", "float32"),
        _check_onnxruntime_gpu,
        "it is installed, and TensorRT cannot run this bundle here ({failure})",
    ),
)
ON_CPU = (
    Offer(
        "openvino",
        ("float32", "bfloat16", "int8"),
        ("float32",),
        _check_openvino,
        "it is installed and the fastest of the CPU engines",
    ),
    Offer(
        "onnxruntime",
        ("float32", "float16", "int8", "fp8"),
        ("float32",),
        _check_onnxruntime,
        "OpenVINO, which is faster on a CPU, cannot do it here ({failure})",
    ),
)


@cache
def gpu_present() -> bool:
    """Whether this machine seems to have an NVIDIA GPU that this process may use; nothing is imported or opened."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").is_file()
    return any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg"))


@cache
def tell_fallback(reason: str) -> None:
    """Say once that a GPU is there and not used, and why."""
    warnings.warn(f"there is a GPU, but the CPU is used: {reason}", RuntimeWarning, stacklevel=4)
