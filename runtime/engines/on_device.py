"""What engines on a GPU ask of the device layer, and what the pipeline asks of them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np


class Array(Protocol):
    """A C-contiguous array in the device's memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def pointer(self) -> int: ...


class Graph(Protocol):
    """A captured CUDA graph."""

    def launch(self, stream: Any) -> None: ...


class Stream(Protocol):
    """A stream of the device; its handle is never 0, the default stream's."""

    @property
    def handle(self) -> int: ...
    def synchronize(self) -> None: ...
    def record(self) -> Any: ...
    def wait(self, event: Any) -> None: ...
    def capture(self, function: Callable[[], None]) -> Graph | None: ...


class Device(Protocol):
    """One GPU."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def compute_capability(self) -> tuple[int, int]: ...
    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any: ...
    def activate(self) -> AbstractContextManager[Any]: ...


class DeviceGraph(Protocol):
    """One graph, ready to run on a GPU."""

    @property
    def input_dtypes(self) -> Mapping[str, np.dtype[Any]]: ...
    @property
    def output_dtypes(self) -> Mapping[str, np.dtype[Any]]: ...

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: Any) -> None:
        """Enqueue the graph on `stream`, reading `inputs` and filling `outputs`, all of them arrays on the device."""
        ...

    def close(self) -> None:
        """Wait for what was enqueued, and free everything."""
        ...
