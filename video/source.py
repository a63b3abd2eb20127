"""Where frames come from: video files and streams by PyAV, cameras by OpenCV, and pictures one after another."""

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import numpy as np

from vocabseg.runtime.errors import VideoError
from vocabseg.runtime.files import open_regular
from vocabseg.runtime.images import load_image, pixel_limit
from vocabseg.video.names import is_address, is_camera

# Seconds without an answer from a camera or server.
TIMEOUT = 10.0
# Frames per second where a source names none.
USUAL_RATE = 25.0
# Formats, by FFmpeg's names, that write down how long they are; of others it is estimated.
ANNOUNCING = ("mov", "matroska")
# Of the frames and of the seconds that a file announces: where it has less of both, its end is missing.
WHOLE = 0.9


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        index: its number in the source, from 0.
        seconds: when it is shown, counted from the first frame.
        image: (H, W, 3) uint8 RGB, upright.
    """

    index: int
    seconds: float
    image: np.ndarray


class FrameSource:
    """Frames in order, read once, by iterating.

    Attributes:
        name: for messages; without the password of a URL.
        rate: frames per second, on average.
        total: about how many frames there are; 0 where it is not known.
        live: whether frames come at their own pace, so that those that come too fast are lost.
        sound: the file that holds the source's audio, or None.
        start: seconds at which the first frame is shown in the source's own time, once it has been read.
        dropped: live frames that were left out because those before them were still being worked on.
        damaged: pieces of the stream that could not be decoded.
    """

    name = ""
    rate = USUAL_RATE
    total = 0
    live = False
    sound: Path | None = None
    start = 0.0

    def __init__(self) -> None:
        self.dropped = self.damaged = 0
        self.stopped = Event()

    def stop(self) -> None:
        """No further frames are read, and `read_ahead` gives out none that wait. May be called from anywhere."""
        self.stopped.set()

    def __iter__(self) -> Iterator[Frame]:
        """The frames; raises VideoError where they end before their time, or are not to be had."""
        for index, (seconds, image) in enumerate(self._pictures()):
            if index == 0:
                self.start = last = seconds
            last = max(seconds, last)  # some files count backwards for a frame or two
            yield Frame(index, last - self.start, image)

    def _pictures(self) -> Iterator[tuple[float, np.ndarray]]:
        raise NotImplementedError


class VideoStream(FrameSource):
    """A video file, or what is behind an address such as rtsp://camera/stream."""

    def __init__(self, path: str):
        super().__init__()
        remote = is_address(path)
        self.live = remote and not path.startswith(("http://", "https://"))
        self.name = repr(re.sub(r"(?<=://)[^/]*@", "", path))
        self._path, self._av = path, video_library()
        # What a file names in turn, as playlists do, is neither fetched nor read from a device.
        options = {"protocol_whitelist": "file"}
        if remote:
            options = {"rtsp_transport": "tcp"} if path.startswith("rtsp") else {}
        try:
            if not remote:
                open_regular(path).close()
            self._container = self._av.open(
                path if remote else os.path.abspath(path), options=options, timeout=TIMEOUT if remote else None
            )
        except FileNotFoundError:
            raise VideoError(f"no such video file: {self.name}; check the path") from None
        except IsADirectoryError:
            raise VideoError(f"{self.name} is a folder; give a video, or name a video as --output") from None
        except (OSError, ValueError, self._av.error.FFmpegError) as error:
            what = "reach" if remote else "read"
            raise VideoError(f"cannot {what} the video {self.name}: {_reason(error)}; check it with a player") from None
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"{self.name} holds no pictures, only {self._contents()}; give a video")
        stream = self._container.streams.video[0]
        if stream.codec_context is None:
            raise VideoError(f"{self.name} has a codec that FFmpeg here cannot decode; convert it to H.264")
        stream.thread_type = "AUTO"
        self._check(stream.codec_context.width, stream.codec_context.height)
        self.rate = float(stream.average_rate or stream.guessed_rate or USUAL_RATE)
        self._length = 0.0  # seconds that the pictures take, where the file says so
        if not self.live:
            seconds, whole = _seconds(stream), (self._container.duration or 0) / self._av.time_base
            self.total = stream.frames or round((seconds or whole) * self.rate)
            if self._container.format.name.startswith(ANNOUNCING):
                alone = len(self._container.streams) == 1  # else the audio may be what is so long
                self._length = seconds or (whole if alone else 0.0)
            if self._container.streams.audio and not remote:
                self.sound = Path(path)

    def _contents(self) -> str:
        return " and ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"

    def _check(self, width: int, height: int) -> None:
        if width * height > (most := pixel_limit()):
            raise VideoError(
                f"{self.name} has {width} x {height} pixels, more than the limit of {most / 10**6:g} megapixels; make "
                "it smaller"
            )

    def _pictures(self) -> Iterator[tuple[float, np.ndarray]]:
        stream, seconds = self._container.streams.video[0], -1 / self.rate
        found, end = 0, 0.0
        with self._container:
            for frame in self._decoded(stream):
                self._check(frame.width, frame.height)
                shown = frame.time
                seconds = seconds + 1 / self.rate if shown is None else float(shown)
                image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                yield seconds, np.ascontiguousarray(image)
                lasts = frame.duration * frame.time_base if frame.duration and frame.time_base else 1 / self.rate
                found, end = found + 1, max(end, seconds + float(lasts))
        if self.stopped.is_set():
            return
        if not found:
            raise VideoError(f"no frame of {self.name} can be decoded; check it with a player")
        # Frames of uneven length make the number a guess, and a last one that stays makes the end one.
        if found + self.damaged < WHOLE * self.total and end < WHOLE * self._length:
            raise VideoError(
                f"the video {self.name} breaks off after {end:.1f} of {self._length:.1f} seconds; get an intact copy"
            )

    def _decoded(self, stream: Any) -> Iterator[Any]:
        """The frames of all packets; those that are damaged are counted, as a player leaves them out."""
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.error.FFmpegError as error:
                raise VideoError(f"the video {self.name} breaks off: {_reason(error)}") from None
            if packet is None:
                return
            try:
                yield from packet.decode()
            except (self._av.error.InvalidDataError, self._av.error.EOFError):
                self.damaged += 1


class Camera(FrameSource):
    """A camera of this machine by its number, through OpenCV; times are when its frames arrived."""

    live = True

    def __init__(self, number: int):
        import cv2

        super().__init__()
        self.name = f"camera {number}"
        log: Any = cv2.utils.logging
        level = log.getLogLevel()
        log.setLogLevel(log.LOG_LEVEL_SILENT)  # it prints a warning of its own for every way that it tries
        try:
            self._capture = cv2.VideoCapture(number)
        finally:
            log.setLogLevel(level)
        if not self._capture.isOpened():
            raise VideoError(f"{self.name} cannot be opened: check that it is plugged in, and that no one else uses it")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if 0 < rate < 1000 else USUAL_RATE

    def _pictures(self) -> Iterator[tuple[float, np.ndarray]]:
        try:
            while not self.stopped.is_set():
                there, picture = self._capture.read()
                if not there:
                    raise VideoError(f"{self.name} gives no more pictures: check that it is still plugged in")
                yield time.monotonic(), np.ascontiguousarray(picture[..., ::-1])
        finally:
            self._capture.release()


class Pictures(FrameSource):
    """Images, as `load_image` takes them, as the frames of a video of `rate` frames per second."""

    def __init__(self, images: Iterable[Any], rate: float = USUAL_RATE):
        super().__init__()
        if not 0 < rate < 1000:
            raise VideoError(f"{rate} frames per second: give a number above 0 and below 1000")
        self.name, self.rate, self._images = "the pictures", rate, images
        self.total = len(images) if isinstance(images, Sequence) else 0

    def _pictures(self) -> Iterator[tuple[float, np.ndarray]]:
        for index, image in enumerate(self._images):
            yield index / self.rate, load_image(image)


def open_source(source: Any, rate: float = USUAL_RATE) -> FrameSource:
    """What `source` is: a `FrameSource`; a video file or the address of a stream; the number of a camera, also as text.

    Anything else is an iterable of images, which are shown at `rate` frames per second. Raises VideoError for what
    cannot be opened, and without the package av where it is needed.
    """
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return Camera(int(text)) if is_camera(text) else VideoStream(text)
    return Camera(source) if isinstance(source, int) else Pictures(source, rate)


def video_library() -> ModuleType:
    """The package av; raises VideoError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise VideoError(f'videos need the package av ({error}): pip install ".[video]", or pip install av') from None
    av.logging.set_level(av.logging.PANIC)  # what matters is raised
    return av  # type: ignore[no-any-return]


def _seconds(stream: Any) -> float:
    """How long the stream is by its own account, which Matroska files have as a tag; 0 where there is none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    parts = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return sum(float(part) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0.0


def _reason(error: Exception) -> str:
    if type(error).__name__ == "ExitError":  # PyAV's for a timeout
        return f"no answer for {TIMEOUT:.0f} seconds"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).lower().split())
