"""What the stages of the pipeline on a GPU pass on: one image on its way, its buffers, and the list of its regions."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vocabseg.runtime.cuda_arrays import DeviceArray
from vocabseg.runtime.cuda_buffers import Buffers
from vocabseg.runtime.cuda_streams import Event

Size = tuple[int, int]


class Timeline(Protocol):
    """Somebody who wants to know when stages begin and end on the device, and what they gave."""

    def stage(self, name: str, begin: Event, end: Event) -> None: ...
    def note(self, name: str, arrays: dict[str, Any]) -> None: ...


@dataclass(eq=False)
class Slot:
    """Buffers of one image between its upload and the cutting of its crops."""

    buffers: Buffers
    uploaded: Event | None = None  # the pinned image may be overwritten
    done: Event | None = None  # the buffers may be


@dataclass(eq=False)
class Found:
    """One image whose proposals are being found: N masks, of which V turn out to be regions.

    The device arrays: resized (h, w, 3) uint8; bits, the packed masks, or None with matting; crop_boxes (N, 4) int32.
    `arrays`: mask_logits (N, hm, wm), query_embeddings (N, D) unless the masks are one's own, table (6 N + 1,) int32
    (see Table), and once crops were encoded embeddings (V, D), of any length.
    """

    image: Any  # (H, W, 3) uint8, on the host or the device
    image_size: Size
    padded_size: Size
    slot: Slot
    resized: DeviceArray
    bits: DeviceArray | None
    crop_boxes: DeviceArray
    arrays: dict[str, DeviceArray]
    selected: Event
    table: "Table"
    encoded: int = 0

    def count(self) -> int:
        """V; waits until the device has told it."""
        return int(self.table.host()[-1])


# Rows of a batch: whose regions, the first of them, how many, and the row of the first.
Part = tuple[Found, int, int, int]


class Table:
    """The list of an image's regions on its way to the host: boxes (N, 4), areas (N,), order (N,) and their number."""

    def __init__(self, masks: int, pinned: np.ndarray, arrived: Event):
        self.masks = masks
        self._pinned: np.ndarray | None = pinned
        self._arrived = arrived
        self._host: np.ndarray | None = None

    @staticmethod
    def parts(table: Any, n: int) -> tuple[Any, Any, Any, Any]:
        """Boxes, areas, order and count of a table (6 N + 1,), on the host or the device."""
        return table[: 4 * n].reshape(n, 4), table[4 * n : 5 * n], table[5 * n : 6 * n], table[6 * n :]

    def host(self) -> np.ndarray:
        """(6 N + 1,) int32; waits for it."""
        if self._host is None:
            self._arrived.synchronize()
            self._host, self._pinned = np.array(self._pinned), None
        return self._host
