"""How a call travels: tritonclient's HTTP and gRPC, which differ in names and in how a time limit is set."""

import importlib
from typing import Any

import numpy as np

from vocabseg.runtime.errors import EngineError, ServerError
from vocabseg.serving.client.call import Call

TYPES = {"uint8": "UINT8", "object": "BYTES"}


class Transport:
    """One of the two; `place` is host and port."""

    module_name = ""

    def __init__(self, place: str, secure: bool, asynchronous: bool):
        self.place = place
        self.secure = secure
        self.asynchronous = asynchronous
        self.module = importlib.import_module(self.module_name)
        self.factory = importlib.import_module(f"{self.module_name}.aio") if asynchronous else self.module

    def connect(self, seconds: float) -> Any:
        raise NotImplementedError

    def set_timeout(self, connection: Any, seconds: float) -> None:
        raise NotImplementedError

    def arguments(self, call: Call, model: str, seconds: float) -> dict[str, Any]:
        """The arguments of `infer`. The server, too, drops the request when its time in the queue is over."""
        return {
            "model_name": model,
            "inputs": [self._input(name, array) for name, array in call.inputs.items()],
            "outputs": [self.module.InferRequestedOutput(name) for name in call.wanted],
            "parameters": call.parameters or None,
            "timeout": max(1, round(seconds * 1e6)),
        }

    def _input(self, name: str, array: np.ndarray) -> Any:
        tensor = self.module.InferInput(name, list(array.shape), TYPES[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        return tensor


class HttpTransport(Transport):
    module_name = "tritonclient.http"

    def connect(self, seconds: float) -> Any:
        options = {"connection_timeout": seconds, "network_timeout": seconds}
        if self.asynchronous:
            options = {"conn_limit": 1000, "conn_timeout": seconds}
        return self.factory.InferenceServerClient(self.place, ssl=self.secure, **options)

    def set_timeout(self, connection: Any, seconds: float) -> None:
        """tritonclient sets the limit when a connection is opened; only the pool behind it takes a new one."""
        pool = getattr(getattr(connection, "_client_stub", None), "_connection_pool", None)
        if pool is not None:
            pool.network_timeout = seconds
            for socket in list(getattr(getattr(pool, "_socket_queue", None), "queue", [])):
                if hasattr(socket, "settimeout"):
                    socket.settimeout(seconds)


class GrpcTransport(Transport):
    module_name = "tritonclient.grpc"

    def connect(self, seconds: float) -> Any:
        return self.factory.InferenceServerClient(self.place, ssl=self.secure)

    def set_timeout(self, connection: Any, seconds: float) -> None:
        """Each call has its own."""

    def arguments(self, call: Call, model: str, seconds: float) -> dict[str, Any]:
        return {**super().arguments(call, model, seconds), "client_timeout": seconds}


def transport_of(url: str, asynchronous: bool = False) -> Transport:
    """The transport for a URL; raises ServerError if it is no URL of a server, EngineError without tritonclient."""
    scheme, separator, place = url.partition("://")
    scheme, place = (scheme.lower(), place) if separator else ("http", url)
    if scheme not in ("http", "https", "grpc", "grpcs") or not place.strip("/") or "@" in place:
        raise ServerError(f"{url!r} is no address of a server: give http://host:8000 or grpc://host:8001")
    kind = HttpTransport if scheme.startswith("http") else GrpcTransport
    try:
        return kind(place.rstrip("/"), scheme.endswith("s"), asynchronous)
    except ImportError as error:
        raise EngineError(f"the client needs tritonclient ({error}): pip install 'vocabseg[serving]'") from error
