"""Frames that a thread of their own reads, a few ahead of those who work on them."""

import queue
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

from vocabseg.video.source import Frame, FrameSource

# Frames that are read and wait: decoding goes on meanwhile, and memory stays bounded.
AHEAD = 4
# Seconds after which a waiting thread looks whether it is still needed.
GLANCE = 0.1


def read_ahead(source: FrameSource) -> Iterator[Frame]:
    """The source's frames, in order; its error is raised when its turn comes.

    A live source is never made to wait: frames for which there is no room are counted as dropped. When the source is
    stopped, no frame that waits is given out; then, and when the iteration ends early, the thread ends with the frame
    that it is reading.
    """
    waiting: queue.Queue[Frame | Exception | None] = queue.Queue(AHEAD)

    def put(item: Frame | Exception | None, always: bool) -> None:
        """Wait for room, unless the source is stopped; with `always` only the iteration's end spares it."""
        while not over and (always or not source.stopped.is_set()):
            with suppress(queue.Full):
                waiting.put(item, timeout=GLANCE)
                return

    def read() -> None:
        end: Exception | None = None
        try:
            for frame in source:
                if source.stopped.is_set():
                    break
                if source.live and waiting.full():
                    source.dropped += 1
                else:
                    put(frame, False)
        except Exception as error:
            end = error
        put(end, True)

    over: list[bool] = []
    thread = Thread(target=read, name="frames", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = waiting.get(timeout=GLANCE)
            except queue.Empty:
                if source.stopped.is_set() and source.live:  # its next frame may never come
                    return
                continue
            if isinstance(item, Exception):
                raise item
            if item is None or source.stopped.is_set():  # what no one has begun would only delay the end
                return
            yield item
    finally:
        over.append(True)
        source.stop()
        if not source.live:
            thread.join()
