"""How a call travels: tritonclient's HTTP and gRPC, which differ in names and in how a time limit is set."""

import importlib
from typing import Any

import numpy as np

from vocabseg.serving.call import Call

TYPES = {"uint8": "UINT8", "object": "BYTES"}
# A gRPC message has 4 MB at most unless told otherwise; labels and scores of a photo have more.
LARGEST_MESSAGE = 2**31 - 1


class Transport:
    """One of the two; `place` is host and port."""

    module_name = ""

    def __init__(self, place: str, secure: bool, asynchronous: bool):
        self.place = place
        self.secure = secure
        self.asynchronous = asynchronous
        self.module = importlib.import_module(self.module_name)
        self.factory = importlib.import_module(f"{self.module_name}.aio") if asynchronous else self.module

    def inputs(self, call: Call) -> list[Any]:
        return [self._input(name, array) for name, array in call.inputs.items()]

    def outputs(self, call: Call) -> list[Any]:
        return [self.module.InferRequestedOutput(name) for name in call.wanted]

    def _input(self, name: str, array: np.ndarray) -> Any:
        tensor = self.module.InferInput(name, list(array.shape), TYPES[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        return tensor

    def arguments(self, call: Call, model: str, seconds: float) -> dict[str, Any]:
        """What `infer` takes. The server drops the request, too, when its time in the queue is over."""
        return {
            "model_name": model,
            "inputs": self.inputs(call),
            "outputs": self.outputs(call),
            "parameters": call.parameters or None,
            "timeout": max(1, round(seconds * 1e6)),
        }


class Http(Transport):
    module_name = "tritonclient.http"

    def connect(self, seconds: float) -> Any:
        if self.asynchronous:
            return self.factory.InferenceServerClient(
                self.place, conn_limit=1000, conn_timeout=seconds, ssl=self.secure
            )
        return self.factory.InferenceServerClient(
            self.place, connection_timeout=seconds, network_timeout=seconds, ssl=self.secure
        )

    def set_timeout(self, connection: Any, seconds: float) -> None:
        """The limit of tritonclient is set when a connection is opened; only the pool behind it takes a new one."""
        pool = getattr(getattr(connection, "_client_stub", None), "_connection_pool", None)
        if pool is not None:
            pool.network_timeout = seconds
            for socket in list(getattr(getattr(pool, "_socket_queue", None), "queue", [])):
                if hasattr(socket, "settimeout"):
                    socket.settimeout(seconds)


class Grpc(Transport):
    module_name = "tritonclient.grpc"

    def connect(self, seconds: float) -> Any:
        return self.factory.InferenceServerClient(self.place, ssl=self.secure)

    def set_timeout(self, connection: Any, seconds: float) -> None:
        """Each call brings its own."""

    def arguments(self, call: Call, model: str, seconds: float) -> dict[str, Any]:
        return {**super().arguments(call, model, seconds), "client_timeout": seconds}
