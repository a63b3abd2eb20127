"""AsyncClient: `Client` for asyncio."""

import asyncio
import time
from collections.abc import Collection
from typing import Any

import numpy as np

from vocabseg.runtime.errors import ServerError
from vocabseg.runtime.result.result import Result
from vocabseg.serving import protocol
from vocabseg.serving.call import Call, Named, json_of, passes, pauses, result_of, translated
from vocabseg.serving.client import RESULT, is_timeout, panoptic_call, transport_of


class AsyncClient:
    """What `Client` is, with methods to await; to be used by one event loop."""

    def __init__(self, url: str, model: str = protocol.MODEL, timeout: float = 60.0, retries: int = 8):
        self.url = url
        self.model = model
        self.timeout = timeout
        self.retries = retries
        self._transport = transport_of(url, asynchronous=True)
        self._connection: Any = None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def __call__(self, image: Any, vocabulary: Any = None, evidence: bool = False) -> Result:
        """As `Client.__call__`."""
        call = Call(image, vocabulary, RESULT + (protocol.EVIDENCE if evidence else ()))
        return result_of(call, await self._send(call))

    @staticmethod
    def named(name: str) -> Named:
        """The vocabulary that the server knows by this name."""
        return Named(name)

    async def segments(self, image: Any, vocabulary: Any = None) -> dict[str, Any]:
        """As `Client.segments`."""
        arrays = await self._send(Call(image, vocabulary, (protocol.SEGMENTS,)))
        found: dict[str, Any] = json_of(arrays[protocol.SEGMENTS])
        return found

    async def panoptic(
        self,
        image: Any,
        vocabulary: Any = None,
        things: Collection[str | int] | None = None,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """As `Client.panoptic`."""
        arrays = await self._send(panoptic_call(image, vocabulary, things, object_mask_threshold, overlap_threshold))
        return np.array(arrays[protocol.PANOPTIC][0]), json_of(arrays[protocol.PANOPTIC_SEGMENTS])

    async def _send(self, call: Call) -> dict[str, np.ndarray]:
        end = time.monotonic() + self.timeout
        waits = pauses(self.retries)
        late = f"the server {self.url} gave no answer within {self.timeout:g} s"
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise ServerError(late)
            if self._connection is None:
                self._connection = self._transport.connect(left)
            try:
                request = self._connection.infer(**self._transport.arguments(call, self.model, left))
                answer = await asyncio.wait_for(request, left)
                return {name: answer.as_numpy(name) for name in call.wanted}
            except TimeoutError as error:
                raise ServerError(late) from error
            except Exception as error:
                wait = next(waits, None) if passes(error) else None
                if wait is None or time.monotonic() + wait >= end:
                    raise (ServerError(late) if is_timeout(error) else translated(error, self.url)) from error
                await asyncio.sleep(wait)
