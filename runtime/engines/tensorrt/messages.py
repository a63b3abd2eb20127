"""TensorRT's log messages, kept for the text of errors."""

import ctypes
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from vocabseg.runtime.errors import EngineError

if TYPE_CHECKING:
    import tensorrt

MESSAGES_KEPT = 40
ERRORS = ("INTERNAL_ERROR", "ERROR")


class Messages:
    """TensorRT's last messages; several of its threads write to it.

    `listener`, if set, is given the text of every message, the verbose ones too.
    """

    def __init__(self) -> None:
        self.recent: deque[tuple[str, str]] = deque(maxlen=MESSAGES_KEPT)
        self.listener: Callable[[str], None] | None = None

    def add(self, severity: str, text: str) -> None:
        """Keep a message; `severity` is TensorRT's name for it."""
        if self.listener is not None:
            self.listener(text)
        if severity == "VERBOSE":
            return
        self.recent.append((severity, " ".join(text.split())))

    def clear(self) -> None:
        """Forget all messages, so that the next error is not explained by an old one."""
        self.recent.clear()

    @property
    def errors(self) -> list[str]:
        """The texts of those that are errors."""
        return [text for severity, text in list(self.recent) if severity in ERRORS]

    def reason(self, default: str = "it gave no reason") -> str:
        """The last error's text, else the last warning's."""
        warnings = [text for severity, text in list(self.recent) if severity == "WARNING"]
        return (self.errors or warnings or [default])[-1]


@cache
def make_logger(trt: Any) -> "tuple[tensorrt.ILogger, Messages]":
    """The logger of a package in this process, and what it collects; TensorRT allows one for a whole process."""
    messages = Messages()
    base: Any = trt.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

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
        raise EngineError(f"{what} does not start: {messages.errors[0]}")
