"""A video and class names -> a result for each frame."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.segmenter import Names, Segmenter
from vocabseg.video.read_ahead import read_ahead
from vocabseg.video.reuse import EmbeddingReuse
from vocabseg.video.source import USUAL_RATE, Frame, open_source
from vocabseg.video.tracking import ObjectTracker

# Frames between two segmented ones that may wait for the labels of the first, since they are held in memory.
MOST_HELD = 60


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What was found in one frame of a video.

    Attributes:
        index: the frame's number in the source, from 0.
        seconds: when it is shown, counted from the source's first frame.
        result: its labels and scores, and the frame itself as `result.image`.
        held: whether the labels are those of an earlier frame, to which nothing but labels and scores are known.
        segmentation, segments: with a tracker, what `ObjectTracker.follow` returned; else None.
    """

    index: int
    seconds: float
    result: Result
    held: bool = False
    segmentation: np.ndarray | None = None
    segments: list[dict[str, Any]] | None = None

    def described(self) -> dict[str, Any]:
        """Plain types: "frame", "seconds", and "segments" as in `Result.to_json`, tracked ones with "track_id"."""
        if self.segmentation is None or self.segments is None:
            segments = self.result.to_json()["segments"]
        else:
            segments = self.result.described_segments(self.segmentation, self.segments)
        return {"frame": self.index, "seconds": round(self.seconds, 6), "segments": segments}


def segment_video(
    segmenter: Segmenter,
    source: Any,
    vocabulary: Names | None = None,
    *,
    every: int = 1,
    hold: bool = False,
    tracker: ObjectTracker | None = None,
    reuse: EmbeddingReuse | None = None,
    rate: float = USUAL_RATE,
) -> Iterator[FrameResult]:
    """Segment the frames of a video in order; frames are decoded ahead by a thread of its own.

    Args:
        source: a video file, the address of a stream, the number of a camera, images, or a `FrameSource`.
        vocabulary: class names, as for the segmenter.
        every: only the frames 0, `every`, 2 * `every` ... are segmented, and only their results are given.
        hold: the frames between are given, too, with the labels of the last segmented one.
        tracker: gives objects ids that stay.
        reuse: keeps the embeddings of regions that stay the same, which changes a few labels; on a CPU only.
        rate: frames per second of images.

    Raises VideoError for a source that cannot be opened, which ends before its time, or lacks the package av;
    VocabularyError, ConfigurationError for other settings, and EngineError for `reuse` on a GPU.
    """
    if every < 1 or (hold and every > MOST_HELD):
        raise ConfigurationError(
            f"every {every}th frame: give 1 or more, and {MOST_HELD} at most where frames are held"
        )
    opened = open_source(source, rate)
    waiting: deque[tuple[Frame, bool]] = deque()

    def chosen() -> Iterator[np.ndarray]:
        for frame in frames:
            due = frame.index % every == 0
            if due or hold:
                waiting.append((frame, due))
            if due:
                yield frame.image

    def held() -> Iterator[FrameResult]:
        while last is not None and waiting and not waiting[0][1]:
            frame, _ = waiting.popleft()
            yield _repeated(last, frame)

    last: FrameResult | None = None
    frames = read_ahead(opened)
    try:
        results: Iterator[Result]
        if reuse is not None:
            results = segmenter.segment_sequence(chosen(), vocabulary, reuse)
        elif hold:  # one after another: each that is begun ahead would have all frames before it wait
            results = (segmenter(image, vocabulary) for image in chosen())
        else:
            results = segmenter.segment_many(chosen(), vocabulary)
        for result in results:
            yield from held()
            frame, _ = waiting.popleft()
            followed = () if tracker is None else tracker.follow(result, frame.seconds)
            last = FrameResult(frame.index, frame.seconds, result, False, *followed)
            yield last
        yield from held()
    finally:
        frames.close()  # type: ignore[attr-defined]


def _repeated(last: FrameResult, frame: Frame) -> FrameResult:
    """A frame under the labels of another one; raises ConfigurationError where it has another size."""
    known = last.result
    if frame.image.shape[:2] != known.labels.shape:
        raise ConfigurationError(f"frame {frame.index} has another size than the one before: segment it without --hold")
    result = Result(known.labels, known.scores, known.classes, frame.image, None, known.categories)
    return FrameResult(frame.index, frame.seconds, result, True, last.segmentation, last.segments)
