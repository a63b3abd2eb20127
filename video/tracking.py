"""Objects followed from frame to frame: panoptic segments get the ids that ByteTrack gives their boxes."""

from collections.abc import Collection
from typing import Any

import numpy as np

from vocabseg.runtime.errors import VideoError
from vocabseg.runtime.result.panoptic import coco_box
from vocabseg.runtime.result.result import Result

INSTALL = "pip install supervision && pip install --no-deps trackers"


class ObjectTracker:
    """Gives the objects of one video ids that stay (ByteTrack, Zhang et al., arXiv 2110.06864, by package trackers)."""

    def __init__(
        self,
        rate: float,
        things: Collection[str | int] | None = None,
        object_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ):
        """The frames per second, and what decides which objects there are, as for `Result.panoptic`.

        Raises VideoError without the packages trackers and supervision.
        """
        try:
            import supervision
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise VideoError(f"tracking needs the packages trackers and supervision ({error}): {INSTALL}") from None
        self._selection = things, object_threshold, overlap_threshold
        self._detections = supervision.Detections
        # The panoptic rule has left only sure objects, so that ByteTrack need not sort out the others.
        self._tracker = ByteTrackTracker(
            frame_rate=rate, track_activation_threshold=0.0, high_conf_det_threshold=0.0, minimum_consecutive_frames=1
        )

    def follow(self, result: Result, seconds: float) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The next frame's `Result.panoptic`, with a "track_id" from 1 in each segment.

        It is None for classes that are not countable, and for an object in the first frame that shows it.
        """
        segmentation, segments = result.panoptic(*self._selection)
        for segment in segments:
            segment["track_id"] = None
        things = [segment for segment in segments if segment["isthing"]]
        boxes = np.array([coco_box(segmentation == thing["id"]) for thing in things], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = self._tracker.update(
            self._detections(
                xyxy=boxes,
                confidence=np.array([thing["score"] for thing in things], np.float32),
                data={"place": np.arange(len(things))},
            ),
            timestamp=seconds,
        )
        for place, number in zip(found.data.get("place", ()), found.tracker_id, strict=True):
            if number >= 0:
                things[place]["track_id"] = int(number) + 1
        return segmentation, segments
