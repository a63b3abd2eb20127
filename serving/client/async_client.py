"""AsyncClient: `Client` for asyncio."""

import asyncio
from collections.abc import Collection
from typing import Any

import numpy as np

from vocabseg.runtime.result.result import Result
from vocabseg.serving import protocol
from vocabseg.serving.client.call import Call, VocabularyName, panoptic_call, segment_call
from vocabseg.serving.client.retries import Attempts
from vocabseg.serving.client.transport import transport_of


class AsyncClient:
    """The same as `Client`, with methods to await; for use in one event loop."""

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
        result: Result = await self._send(segment_call(image, vocabulary, evidence))
        return result

    @staticmethod
    def named(name: str) -> VocabularyName:
        """The vocabulary that the server knows by this name."""
        return VocabularyName(name)

    async def segments(self, image: Any, vocabulary: Any = None) -> dict[str, Any]:
        """As `Client.segments`."""
        found: dict[str, Any] = await self._send(Call(image, vocabulary, (protocol.SEGMENTS,)))
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
        call = panoptic_call(image, vocabulary, things, object_mask_threshold, overlap_threshold)
        ids, segments = await self._send(call)
        return ids, segments

    async def _send(self, call: Call) -> Any:
        attempts = Attempts(self.url, self.timeout, self.retries)
        while True:
            left = attempts.seconds_left()
            if self._connection is None:
                self._connection = self._transport.connect(left)
            try:
                request = self._connection.infer(**self._transport.arguments(call, self.model, left))
                answer = await asyncio.wait_for(request, left)
                break
            except Exception as error:
                await asyncio.sleep(attempts.pause_after(error))
        return call.read({name: answer.as_numpy(name) for name in call.wanted})
