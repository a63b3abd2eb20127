"""Names painted on a frame where their segments are: a video has no room for a legend that changes."""

from collections.abc import Iterator

import numpy as np

from vocabseg.runtime.result.lettering.fonts import font_for
from vocabseg.video.segmentation import FrameResult

# Least share of the frame that a segment with a tag has.
SMALLEST = 0.004
LONGEST = 40


def tagged(frame: FrameResult, style: str = "overlay", labels: bool = True) -> np.ndarray:
    """The frame's picture in a style of `Result.draw`, uint8 RGB; `labels`: with names, and ids of tracked objects."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(frame.result.draw(legend=False, style=style, labels=False))
    if not labels:
        return np.asarray(picture)
    palette = frame.result.categories.palette(len(frame.result.classes))
    text = max(10, round(min(picture.size) / 24))
    canvas = ImageDraw.Draw(picture)
    # The largest ones first, so that the names of small objects lie on top.
    for name, index, mask in sorted(_segments(frame), key=lambda segment: -np.count_nonzero(segment[2])):
        if np.count_nonzero(mask) < SMALLEST * mask.size:
            break
        font = font_for(name, text)
        x, y = _innermost(mask)
        colour = tuple(palette[index].tolist())
        dark = np.dot(palette[index], (0.299, 0.587, 0.114)) < 140
        left, top, right, bottom = canvas.textbbox((x, y), name, font=font, anchor="mm")
        # Moved so that all of it is in the picture.
        dx = max(3 - left, 0) + min(picture.width - 3 - right, 0)
        dy = max(3 - top, 0) + min(picture.height - 3 - bottom, 0)
        canvas.rectangle((left + dx - 3, top + dy - 2, right + dx + 3, bottom + dy + 2), fill=colour)
        canvas.text((x + dx, y + dy), name, font=font, anchor="mm", fill="white" if dark else "black")
    return np.asarray(picture)


def _segments(frame: FrameResult) -> Iterator[tuple[str, int, np.ndarray]]:
    """Text, class and mask (H, W) bool of what gets a tag."""
    classes = [" ".join(name.split())[:LONGEST] for name in frame.result.classes]
    if frame.segmentation is not None and frame.segments is not None:
        for segment in frame.segments:
            number = "" if segment["track_id"] is None else f" {segment['track_id']}"
            index = segment["category_id"]
            yield classes[index] + number, index, frame.segmentation == segment["id"]
    else:
        labels = frame.result.labels
        for index in np.unique(labels[labels >= 0]).tolist():
            yield classes[index], index, labels == index


def _innermost(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel that is farthest from the outside, and from the frame's edge."""
    import cv2

    padded = np.pad(mask.astype(np.uint8), 1)
    y, x = np.unravel_index(cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1].argmax(), mask.shape)
    return int(x), int(y)
