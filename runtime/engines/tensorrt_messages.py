"""What TensorRT says while it works, kept for the text of our errors."""

from collections import deque
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from vocabseg.runtime.engines.tensorrt_package import load_package, trt

if TYPE_CHECKING:
    import tensorrt

MESSAGES_KEPT = 40


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

    def reason(self, default: str = "it gave no reason") -> str:
        """The last error's text, else the last warning's."""
        for wanted in (("INTERNAL_ERROR", "ERROR"), ("WARNING",)):
            found = [text for severity, text in list(self.recent) if severity in wanted]
            if found:
                return found[-1]
        return default


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
