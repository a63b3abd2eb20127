"""NVIDIA's libraries behind ONNX Runtime's CUDA provider: loading them, and naming the one that is missing."""

import contextlib
import ctypes
import io
from typing import Any

# Needed by libonnxruntime_providers_cuda.so 1.31.1 (readelf -d), by CUDA's major version; cuDNN is loaded when used.
NEEDED = {
    13: ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"),
    12: ("libcudart.so.12", "libcublasLt.so.12", "libcublas.so.12", "libcurand.so.10", "libcudnn.so.9"),
}
DRIVER = "libcuda.so.1"


def preload_libraries(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages if installed; missing libraries are reported later."""
    if hasattr(onnxruntime, "preload_dlls"):  # from version 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a page about each missing one
            onnxruntime.preload_dlls(cuda=True, cudnn=True, msvc=False)


def why_no_provider() -> str:
    """Why the CUDA provider does not load, and what to do about it."""
    if not _loads(DRIVER):
        return f"there is no NVIDIA driver ({DRIVER} cannot be loaded): install one"
    missing = [name for name in NEEDED.get(cuda_version(), ()) if not _loads(name)]
    if missing:
        return f"{', '.join(missing)} cannot be loaded: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return "its CUDA provider does not start: see its log, and whether the driver is new enough for its CUDA version"


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
