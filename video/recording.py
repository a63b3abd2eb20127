"""Results of a video's frames -> a video with overlays, and lines of JSON; both are complete however it ends."""

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vocabseg.runtime.errors import VideoError, VocabsegError
from vocabseg.runtime.files import atomic_write, strict_json
from vocabseg.runtime.progress import Progress, silent
from vocabseg.video.muxer import VideoWriter
from vocabseg.video.segmentation import FrameResult
from vocabseg.video.source import FrameSource
from vocabseg.video.tags import tagged

# Frames that may wait to be drawn and encoded while the next ones are segmented.
BEHIND = 4


@dataclass(frozen=True)
class Recorded:
    """How it went: frames and seconds, why the source or its results ended early, and why there is no sound."""

    frames: int
    seconds: float
    failure: VocabsegError | None
    silenced: str


def record(
    results: Iterable[FrameResult],
    source: FrameSource,
    video: Path | None,
    lines: Path | None,
    each: int = 1,
    progress: Progress = silent,
    style: str = "overlay",
    labels: bool = True,
) -> Recorded:
    """Write the results of `source` as a video, and as JSON with a line for each frame; a thread draws and encodes.

    Of `each` frames of the source one is among them. `style` and `labels` are those of `Result.draw`. What was written
    when an error ends the results is kept and the error returned; without any frame it is raised. Raises OutputError
    where a file cannot be written.
    """
    done, began, total = 0, time.monotonic(), -(-source.total // each)
    refused: list[VocabsegError] = []  # by the writer
    ended: VocabsegError | None = None  # why the results did
    with ExitStack() as stack:
        writer, text = None, None
        if video is not None:
            writer = VideoWriter(stack.enter_context(atomic_write(video)), video, source.rate / each, source)
        if lines is not None:
            text = stack.enter_context(atomic_write(lines))

        def write(frame: FrameResult) -> int:
            """How many frames were written: none after one that could not be."""
            try:
                if not refused and writer is not None:
                    writer.write(tagged(frame, style, labels), frame.seconds)
                if not refused and text is not None:
                    text.write(strict_json(frame.described()) + b"\n")
            except VocabsegError as error:
                refused.append(error)
            return int(not refused)

        def finish() -> None:
            nonlocal done
            done += pending.popleft().result()
            progress(f"{done / (time.monotonic() - began):.1f} frames/s", done, max(total, done) if total else 0)

        pending: deque[Future[int]] = deque()
        with ThreadPoolExecutor(1, "encode") as pool:
            try:
                for frame in results:
                    pending.append(pool.submit(write, frame))
                    if len(pending) > BEHIND:
                        finish()
                    if refused:
                        source.stop()
                        break
            except VocabsegError as error:
                ended = error
            while pending:
                finish()
        failure = refused[0] if refused else ended
        if not done:
            raise failure or VideoError(f"no frame of {source.name} was segmented: it ended before the first one")
        if writer is not None:
            writer.close()
    return Recorded(done, time.monotonic() - began, failure, "" if writer is None else writer.silenced)
