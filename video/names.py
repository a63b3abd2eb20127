"""Which names are those of videos to write, streams and cameras; imports no other library."""

import os
import re
from pathlib import Path

from vocabseg.runtime.errors import OutputError

# File name suffix -> FFmpeg's name of the format, and encoders with their options; the first one that is there is used.
X264 = ("libx264", {"preset": "veryfast", "crf": "20"})
MPEG4 = ("mpeg4", {"qscale": "3"})
VP9 = ("libvpx-vp9", {"crf": "32", "deadline": "realtime", "cpu-used": "6"})
FORMATS: dict[str, tuple[str, tuple[tuple[str, dict[str, str]], ...]]] = {
    ".mp4": ("mp4", (X264, MPEG4)),
    ".mov": ("mov", (X264, MPEG4)),
    ".mkv": ("matroska", (X264, MPEG4)),
    ".webm": ("webm", (VP9,)),
}


def is_camera(text: str) -> bool:
    """Whether text is a camera's number, and not the name of a file."""
    return text.isascii() and text.isdecimal() and len(text) < 4 and not os.path.exists(text)


def is_address(text: str) -> bool:
    """Whether text is the address of a stream."""
    return re.match(r"[a-z][a-z0-9+]+://", text) is not None


def check_video_name(path: Path) -> Path:
    """The path; raises OutputError where its suffix is none of a video that can be written."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"cannot write a video to {str(path)!r}: use one of the suffixes {', '.join(FORMATS)}")
    return path
