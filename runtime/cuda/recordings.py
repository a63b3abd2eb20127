"""What was enqueued on a stream before, and is enqueued again at the price of the driver's calls alone."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.streams import Stream, Submissions

# A recording takes 1 to 4 KB, and an image has up to six, with a region budget seven; the buffers of many images come
# round in turn.
MOST_RECORDINGS = 1024


class Recordings:
    """The calls of recurring work, by all that they depend on: addresses and shapes of arrays, and settings.

    Nothing is kept alive by them, and the memory at an address may change hands: for the same addresses, shapes and
    settings the work would make the same calls. The least recently used go first. One thread at a time, as the caller
    sees to. `state` gives two counts, of what the work itself keeps: how often it was replaced, after which all that
    was recorded is void, and how often something was set up.
    """

    def __init__(self, state: Callable[[], tuple[int, int]], most: int = MOST_RECORDINGS):
        self._state, self._most = state, most
        self._known: OrderedDict[Hashable, Submissions] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def run(
        self,
        name: str,
        stream: Stream,
        arrays: Iterable[DeviceArray | None],
        settings: Hashable,
        work: Callable[[], Any],
    ) -> None:
        """Do `work`, which enqueues kernels, copies and fills on `stream`, but neither events nor waits.

        It is recorded the first time that it neither fails nor sets anything up, and from then on replayed.
        """
        used = tuple([None if each is None else (each.pointer, each.shape, each.dtype) for each in arrays])
        state, known = self._state(), self._known
        key = (name, used, settings, state[0])
        if key in known:
            known.move_to_end(key)
            stream.replay(known[key])
            return
        calls = stream.recorded(work)
        if self._state() == state:
            known[key] = calls
            if len(known) > self._most:
                known.popitem(last=False)
