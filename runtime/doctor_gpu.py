"""The GPU's part of `vocabseg doctor`: driver, device, kernels, and the engines that run there."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import msgspec

from vocabseg.runtime import engines
from vocabseg.runtime.errors import EngineError


class Finding(msgspec.Struct, frozen=True):
    """One line of the report: what was looked for, whether it is fine, and what was found or is missing."""

    what: str
    fine: bool
    text: str


def gpu_findings() -> list[Finding]:
    """What an NVIDIA GPU needs, and what of it is here; nothing is opened where there is no GPU."""
    lines: list[tuple[str, Callable[[], str]]] = [
        ("GPU", _gpu),
        ("CUDA kernels", _kernels),
        ("pycuda", _pycuda),
        ("CUDA graphs", _graphs),
        ("engine tensorrt on the GPU", _tensorrt),
        ("engine onnxruntime on the GPU", _onnxruntime),
    ]
    findings = []
    for what, look in lines:
        try:
            findings.append(Finding(what, True, look()))
        except EngineError as error:
            findings.append(Finding(what, False, str(error)))
    return findings


def _gpu() -> str:
    from vocabseg.runtime.cuda import megabytes, open_device

    if not engines.gpu_present():
        raise EngineError("no NVIDIA GPU was found (or CUDA_VISIBLE_DEVICES hides it)")
    device = open_device(0)
    driver = f"{device.driver_version // 1000}.{device.driver_version % 1000 // 10}"
    free = megabytes(device.memory()["free"])
    return f"{device.name} ({device.key}), {free} of {megabytes(device.total_memory)} free, driver for CUDA {driver}"


def _kernels() -> str:
    from vocabseg.runtime.kernels.cuda import CudaKernels, kernels_fatbin

    size = len(kernels_fatbin())
    if not engines.gpu_present():
        return f"built ({size // 1000} kB)"
    from vocabseg.runtime.cuda import open_device

    CudaKernels(open_device(0))
    return f"built ({size // 1000} kB), and they load on this GPU"


def _pycuda() -> str:
    try:
        return version("pycuda")
    except PackageNotFoundError:
        raise EngineError("not installed (the GPU's memory and streams: pip install 'vocabseg[gpu]')") from None


def _graphs() -> str:
    try:
        return f"through cuda-bindings {version('cuda-bindings')}"
    except PackageNotFoundError:
        raise EngineError("not used, which is slower: pip install cuda-bindings") from None


def _tensorrt() -> str:
    from vocabseg.runtime.engines.tensorrt_package import package_info

    package = package_info()
    return f"TensorRT {package.version} ({package.kind}); `vocabseg build` makes a bundle's plans"


def _onnxruntime() -> str:
    if find_spec("onnxruntime") is None:
        raise EngineError("not installed: pip install 'vocabseg[gpu]'")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise EngineError("the installed ONNX Runtime is the CPU's: pip uninstall onnxruntime, then 'vocabseg[gpu]'")
    return f"ONNX Runtime {onnxruntime.__version__} with its CUDA provider"
