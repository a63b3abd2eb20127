"""What the stages on a GPU pass on: an image in progress, its buffers, and the list of its regions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Event, Stream
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.segmenter.buffers import Buffers

# Arrays that come from a network, with the graph's name and the output's.
FLAGGED = {
    "mask_logits": ("proposal network", "mask_logits"),
    "query_embeddings": ("proposal network", "query_embeddings"),
    "embeddings": ("image encoder", "image_features"),
}


@dataclass(eq=False)
class Slot:
    """Buffers of one image, from its upload until its crops are cut."""

    buffers: Buffers
    uploaded: Event | None = None  # once reached, the pinned image may be overwritten
    done: Event | None = None  # once reached, the buffers may be


class Slots:
    """The free slots of one device."""

    def __init__(self, device: Device):
        self._device = device
        self._free: list[Slot] = []

    def __len__(self) -> int:
        return len(self._free)

    def take(self, *streams: Stream) -> Slot:
        """A slot that these streams may write to; their work there waits for the slot's previous image."""
        if not self._free:
            slot = Slot(Buffers(self._device, lambda: None if slot.done is None else slot.done.synchronize()))
            return slot
        slot = self._free.pop(0)
        if slot.done is not None:
            for stream in streams:
                stream.wait(slot.done)
        return slot

    def give_back(self, slot: Slot, done: Event | None) -> None:
        """Free the slot once `done` is reached, or at once if None."""
        if slot in self._free:
            return
        slot.done = done
        if done is None:
            slot.uploaded = None
        self._free.append(slot)


@dataclass(frozen=True, eq=False)
class DeviceImage:
    """An image ready for the proposal network: resized (h, w, 3) uint8, network_input (1, 3, Hp, Wp)."""

    image: Any  # (H, W, 3) uint8, on the host or the device
    slot: Slot
    resized: DeviceArray
    network_input: DeviceArray


class RegionTable:
    """The list of an image's regions: boxes (N, 4), areas (N,), order (N,) and their number, (6 N + 1,) int32 in all.

    Under a region budget, crops are a list of their own: the mask whose crop stands for each mask (N,), the masks of
    the crops (N,) and their number follow. It is computed on the device, where its memory is not kept alive by this.
    """

    def __init__(self, masks: int, budgeted: bool):
        self.masks, self.budgeted = masks, budgeted
        self.size = 8 * masks + 2 if budgeted else 6 * masks + 1
        self._pinned: np.ndarray | None = None
        self._arrived: Event | None = None
        self._host: np.ndarray | None = None

    def download(self, pinned: np.ndarray, arrived: Event) -> None:
        """The table is being copied to `pinned`, and is there when `arrived` is reached."""
        self._pinned, self._arrived = pinned, arrived

    def of(self, table: Any) -> tuple[Any, Any, Any, Any]:
        """Boxes, areas, order and count of such a table, on the host or the device."""
        n = self.masks
        return table[: 4 * n].reshape(n, 4), table[4 * n : 5 * n], table[5 * n : 6 * n], table[6 * n : 6 * n + 1]

    def cut_of(self, table: Any) -> tuple[Any, Any]:
        """The masks of the crops, and their number, of such a table."""
        n = self.masks
        return (table[7 * n + 1 : 8 * n + 1], table[8 * n + 1 :]) if self.budgeted else self.of(table)[2:]

    def leaders_of(self, table: Any) -> Any:
        """The mask whose crop stands for each, -1 for none, of a budgeted table."""
        return table[6 * self.masks + 1 : 7 * self.masks + 1]

    def host(self) -> np.ndarray:
        """All of it, int32; waits until it has arrived."""
        if self._host is None:
            assert self._arrived is not None
            self._arrived.synchronize()
            self._host, self._pinned = np.array(self._pinned), None
        return self._host

    def regions(self) -> int:
        """V; waits until it has arrived."""
        return int(self.of(self.host())[3][0])

    def crops(self) -> int:
        """How many crops are to be encoded; waits until it has arrived."""
        return int(self.cut_of(self.host())[1][0])

    def encoded_as(self) -> np.ndarray:
        """(V,): see `Regions.encoded_as`; of a budgeted table."""
        areas, leaders = self.of(self.host())[1], self.leaders_of(self.host())
        return (np.cumsum(areas > 0) - 1)[leaders[areas > 0]]

    def on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (V, 4) of the regions, and areas (N,)."""
        boxes, areas, _, _ = self.of(self.host())
        return boxes[areas > 0], areas


@dataclass(eq=False)
class DeviceProposals:
    """One image whose proposals are being found: N masks, of which V turn out to be regions.

    The stage `describe` fills `listed`, the table on the device, and sets bits, the packed masks, or None with matting;
    crop_boxes (N, 4) int32; and selected, reached when these are computed. The embeddings, not normalised, follow
    later: of the crops, of which the first `encoded` have been enqueued, and in the end (V, D) of the regions. `flags`
    (3,) int32 become 1 where one of `FLAGGED` holds infinities or NaN.
    """

    image: Any  # (H, W, 3) uint8, on the host or the device
    slot: Slot
    resized: DeviceArray  # (h, w, 3) uint8
    masks: Masks
    query_embeddings: DeviceArray | None
    flags: DeviceArray
    listed: DeviceArray
    table: RegionTable
    bits: DeviceArray | None = None
    crop_boxes: DeviceArray | None = None
    selected: Event | None = None
    embeddings: DeviceArray | None = None
    encoded: int = 0

    @property
    def has_queries(self) -> bool:
        return self.query_embeddings is not None

    def flag(self, name: str, kernels: Any, stream: Stream) -> None:
        """Look for infinities and NaN in one of `FLAGGED`."""
        place = list(FLAGGED).index(name)
        kernels.find_unusable(self.arrays()[name], self.flags[place : place + 1], stream)

    def arrays(self) -> dict[str, DeviceArray]:
        """What later queries need, by name."""
        found = {
            "mask_logits": self.masks.logits,
            "query_embeddings": self.query_embeddings,
            "flags": self.flags,
            "table": self.listed,
            "embeddings": self.embeddings,
        }
        return {name: array for name, array in found.items() if array is not None}


# A part of a batch: the image, its first region, how many regions, and the row of the first.
Part = tuple[DeviceProposals, int, int, int]
