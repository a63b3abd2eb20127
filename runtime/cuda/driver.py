"""The NVIDIA driver, through PyCUDA: imported when a device is first opened; its errors become one line."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from vocabseg.runtime.errors import DeviceMemoryError, EngineError

# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: captures of other threads, even global ones as in ONNX Runtime, forbid nothing.
THREAD_LOCAL = 1
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
# Errors (CUresult and the text that PyCUDA gives) after which a context is of no use any more.
FATAL = {
    214: "uncorrectable ECC error",
    700: "illegal memory access",
    702: "launch timed out",
    710: "device-side assert",
    714: "hardware stack error",
    715: "illegal instruction",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
}
FATAL_HINT = "; nothing can run on this GPU in this process any more"


def load_driver() -> Any:
    """The module pycuda.driver, with the driver initialised; raises an EngineError that says what is missing."""
    try:
        import pycuda.driver as driver
    except ModuleNotFoundError as error:
        raise EngineError(f"the package {error.name} is not installed: pip install 'vocabseg[gpu]'") from error
    except ImportError as error:
        if "libcuda" in str(error):
            raise EngineError(
                "there is no NVIDIA driver (libcuda.so.1 is missing): install it, or use 'cpu'"
            ) from error
        raise EngineError(f"PyCUDA cannot be loaded ({error}): reinstall it") from error
    try:
        driver.init()
    except driver.Error as error:
        raise EngineError(
            f"the NVIDIA driver does not start ({_one_line(error)}): see what nvidia-smi says, or use 'cpu'"
        ) from error
    return driver


def checked(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call into the driver; its errors become EngineError with the call, the error and its text in one line.

    Raises DeviceMemoryError, which is an EngineError, if memory runs out.
    """
    try:
        return function(*arguments, **named)
    except Exception as error:
        import pycuda.driver

        if not isinstance(error, pycuda.driver.Error):
            raise
        kind, text = type(error).__name__, _one_line(error)
        if isinstance(error, pycuda.driver.MemoryError):
            raise DeviceMemoryError(
                f"the GPU is out of memory ({text}): use smaller images or free its memory"
            ) from error
        # The class does not tell: PyCUDA calls an illegal address a LogicError, and too many registers a LaunchError.
        hint = FATAL_HINT if any(fatal in text for fatal in FATAL.values()) else ""
        raise EngineError(f"CUDA {kind}: {text}{hint}") from error


def exchange_capture_mode(mode: int) -> int:
    """Set the calling thread's capture mode and return the previous one."""
    value = ctypes.c_int(mode)
    _exchange()(ctypes.byref(value))
    return value.value


@cache
def _exchange() -> Callable[[Any], int]:
    try:
        return ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode
    except OSError:  # the driver is emulated in Python
        return lambda _: 0


def megabytes(size: int) -> str:
    """A number of bytes as text."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
