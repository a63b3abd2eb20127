"""What TensorRT says while it works, kept for the text of our errors."""

import ctypes
from collections import deque
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from vocabseg.runtime.engines.tensorrt.package import load_package, trt
from vocabseg.runtime.errors import EngineError

if TYPE_CHECKING:
    import tensorrt

MESSAGES_KEPT = 40
ERRORS = ("INTERNAL_ERROR", "ERROR")


class Messages:
    """What TensorRT said last; kept for the text of errors. Written to by several of its threads."""

    def __init__(self) -> None:
        self.recent: deque[tuple[str, str]] = deque(maxlen=MESSAGES_KEPT)

    def add(self, severity: str, text: str) -> None:
        """Keep a message; `severity` is TensorRT's name for it."""
        self.recent.append((severity, " ".join(text.split())))

    def clear(self) -> None:
        """Forget what was said, so that the next error is not explained by an old one."""
        self.recent.clear()

    @property
    def errors(self) -> list[str]:
        """The errors among what was said."""
        return [text for severity, text in list(self.recent) if severity in ERRORS]

    def reason(self, default: str = "it gave no reason") -> str:
        """The last error's text, else the last warning's."""
        warnings = [text for severity, text in list(self.recent) if severity == "WARNING"]
        return (self.errors or warnings or [default])[-1]


def make_logger() -> "tuple[tensorrt.ILogger, Messages]":
    """TensorRT's logger of this process and what it collects; TensorRT allows one for all of a process."""
    return _logger(load_package()[0])


@cache
def _logger(package: ModuleType) -> "tuple[tensorrt.ILogger, Messages]":
    messages = Messages()

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: "tensorrt.ILogger.Severity", msg: str) -> None:
            messages.add(severity.name, msg)

    return Logger(), messages


def check_started(made: object, what: str, messages: Messages) -> None:
    """Raise EngineError where TensorRT logged an error while it made its runtime or builder.

    Where CUDA does not start (no driver, or one that is too old for this TensorRT) it can hand out an object all the
    same: any use of it crashes the process, and so does freeing it, so it is never freed.
    """
    if messages.errors:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
        raise EngineError(f"TensorRT's {what} does not start: {messages.errors[0]}")
