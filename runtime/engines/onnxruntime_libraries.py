"""NVIDIA's libraries behind ONNX Runtime's CUDA provider: loading them, and naming the one that is missing."""

import contextlib
import ctypes
import io
from typing import Any

from vocabseg.runtime.errors import EngineError

# Needed by libonnxruntime_providers_cuda.so 1.31.1 (readelf -d), by CUDA's major version; cuDNN is loaded when used.
NEEDED = {
    13: ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"),
    12: ("libcudart.so.12", "libcublasLt.so.12", "libcublas.so.12", "libcurand.so.10", "libcudnn.so.9"),
}
DRIVER = "libcuda.so.1"


def preload_libraries(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages if installed."""
    if hasattr(onnxruntime, "preload_dlls"):  # from version 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a page about each missing one
            onnxruntime.preload_dlls(cuda=True, cudnn=True, msvc=False)


def check_libraries(onnxruntime: Any) -> None:
    """Raise EngineError for what the CUDA provider needs and cannot load: the driver, or some of CUDA and cuDNN.

    Without cuDNN alone a session would open, and its first run fail.
    """
    if not _loads(DRIVER):
        raise EngineError(
            f"ONNX Runtime cannot use the GPU: there is no NVIDIA driver ({DRIVER} cannot be loaded): install one"
        )
    preload_libraries(onnxruntime)
    missing = [name for name in NEEDED.get(cuda_version(), ()) if not _loads(name)]
    if missing:
        raise EngineError(
            f"ONNX Runtime cannot use the GPU: {', '.join(missing)} cannot be loaded: "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )


def cuda_version() -> int:
    """The major version of CUDA that the installed ONNX Runtime was built for; 0 if unknown."""
    try:
        from onnxruntime.capi import build_and_package_info
    except ImportError:
        return 0
    return int(str(getattr(build_and_package_info, "cuda_version", "0") or "0").split(".")[0] or 0)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
