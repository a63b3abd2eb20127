"""Small videos, written with PyAV itself, and what is in those that come out."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vocabseg.benchmarks.scenes.moving import moving_scenes
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.segmenter.opening import open_segmenter
from vocabseg.runtime.segmenter.segmenter import Segmenter

av = pytest.importorskip("av", reason="videos need the package av")


def small_segmenter() -> Segmenter:
    """The demo model with networks that see small frames."""
    return open_segmenter(open_adjusted(None, ["input.min_size=64"]), "cpu", "onnxruntime")


def moving_frames(count: int, size: tuple[int, int] = (96, 128), **how: int) -> list[np.ndarray]:
    return [scene.image for scene in moving_scenes(2, 1, count, size, **how)]


def write_clip(
    path: Path, frames: Sequence[np.ndarray], times: Sequence[float] = (), codec: str = "libx264", sound: bool = False
) -> Path:
    """A video of these frames, 25 a second or at `times` in seconds, on request with a beep as long as it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        beep = container.add_stream("aac", rate=16000) if sound else None
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = round(1000 * (times[index] if times else index / 25))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if beep is not None:
            wave = (8000 * np.sin(np.arange(1024) * 0.2)).astype(np.int16)[None]
            for index in range(len(frames) * 640 // 1024):
                part = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
                part.sample_rate, part.pts = 16000, 1024 * index
                container.mux(beep.encode(part))
            container.mux(beep.encode(None))
    return path


def played(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Times in seconds, and pictures."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.time for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]
