"""Video files that are written frame by frame, with the sound of the source."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vocabseg.runtime.errors import OutputError
from vocabseg.video.names import FORMATS, check_video_name
from vocabseg.video.source import FrameSource, video_library

# Of a second: the clock that MPEG and RTP have, in which the usual frame rates are whole numbers.
CLOCK = 90_000
# How FFmpeg numbers ITU-T H.273's matrix of BT.601, by which it converts RGB.
BT601 = 6


class VideoWriter:
    """Encodes frames into an open file; the size is that of the first one, each side rounded up to an even number."""

    def __init__(self, file: BinaryIO, path: Path, rate: float, source: FrameSource | None = None):
        """`path` names the format, `rate` the usual frames per second; the audio of `source` is copied.

        Raises OutputError for another format, and where its encoders are missing.
        """
        self._av = video_library()
        self._form, encoders = FORMATS[check_video_name(path).suffix.lower()]
        there = [one for one in encoders if one[0] in self._av.codecs_available]
        if not there:
            raise OutputError(f"package av lacks the encoder {encoders[0][0]} for {str(path)!r}: name it .mp4")
        (self._codec, self._options), self._file, self._path = there[0], file, path
        # The usual rate, never 0: when a frame is shown is what its own time says.
        self._rate, self._source = max(Fraction(rate).limit_denominator(1001), Fraction(1, 1001)), source
        self._container: Any = None
        self._audio: Iterator[Any] = iter(())
        self._size: tuple[int, ...] = ()
        self._ticks = -1
        self.silenced = ""  # why there is no sound

    def write(self, picture: np.ndarray, seconds: float) -> None:
        """Add a frame (H, W, 3) uint8 RGB that is shown at `seconds`; raises OutputError for one of another size."""
        if self._container is None:
            self._open(picture)
        if picture.shape != self._size:
            (high, wide), (height, width) = self._size[:2], picture.shape[:2]
            raise OutputError(
                f"the frame at {seconds:.3f} s has {width} x {height} pixels, not {wide} x {high} as before: a video "
                "has one size, cut it where it changes"
            )
        height, width = picture.shape[:2]
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        self._ticks = max(round(seconds * CLOCK), self._ticks + 1)
        frame.pts, frame.time_base = self._ticks, Fraction(1, CLOCK)
        self._mux(self._stream.encode(frame))
        for packet in self._audio:
            self._container.mux(packet)
            if packet.dts is not None and packet.dts * packet.time_base >= seconds:
                break

    def close(self) -> None:
        """Finish the file, so that it plays up to the last frame."""
        if self._container is not None:
            self._mux(self._stream.encode(None))
            self._container.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.duration = packet.duration or round(CLOCK / self._rate)
            self._container.mux(packet)

    def _open(self, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        self._size = picture.shape
        self._container = self._av.open(self._file, "w", format=self._form)
        stream = self._container.add_stream(self._codec, rate=self._rate, options=self._options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.codec_context.time_base = Fraction(1, CLOCK)
        stream.codec_context.colorspace = BT601
        self._stream = stream
        if self._source is not None and self._source.sound is not None:
            self._audio = self._copied(self._source.sound, self._source.start)
            next(self._audio, None)  # adds the stream, which must be there before the first packet

    def _copied(self, path: Path, start: float) -> Iterator[Any]:
        """None, when the audio stream has been added, and then its packets."""
        with self._av.open(str(path.absolute()), options={"protocol_whitelist": "file"}) as container:
            audio = container.streams.audio[0]
            name = None if audio.codec_context is None else audio.codec_context.name
            if name not in self._container.supported_codecs:
                self.silenced = f"its audio ({name}) does not fit into a {self._form} file"
                return
            copy = self._container.add_stream_from_template(audio)
            yield None
            for packet in container.demux(audio):
                if packet.dts is None or packet.pts is None:
                    continue
                shift = round(start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                if packet.pts >= 0:
                    packet.stream = copy
                    yield packet
