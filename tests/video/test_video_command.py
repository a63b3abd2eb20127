"""`vocabseg segment` on videos: the files that come out, however it ends, and what is refused."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video.clips import av, moving_frames, played, write_clip
from vocabseg.cli import main
from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.result.colours import class_colours
from vocabseg.video.muxer import VideoWriter
from vocabseg.video.recording import record
from vocabseg.video.segmentation import FrameResult
from vocabseg.video.source import Pictures

COMMON = ("--set", "input.min_size=64", "--engine", "onnxruntime", "--device", "cpu")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["segment", *map(str, arguments), *COMMON])
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


def test_a_video_with_sound_odd_sides_and_uneven_times(run) -> None:
    times = [0.0, 0.04, 0.08, 0.3, 0.34, 0.5]
    write_clip(Path("clip.mkv"), moving_frames(6, (96, 128)), times, sound=True)
    code, out, err = run("clip.mkv", "-w", "overlay", "-w", "json", "-o", "out.mp4")
    assert (code, out.split()) == (0, ["out.mp4", "out.jsonl"]), err
    assert "6 frames in " in err
    assert played(Path("out.mp4"))[0] == pytest.approx(times, abs=0.001)
    with av.open("out.mp4") as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert sum(1 for _ in container.decode(audio=0)) > 2
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    assert [line["seconds"] for line in lines] == pytest.approx(times, abs=0.001)
    assert all(segment["segmentation"]["size"] == [96, 128] for line in lines for segment in line["segments"])
    assert all(sum(segment["area"] for segment in line["segments"]) == 96 * 128 for line in lines)


def test_pictures_become_a_video(run) -> None:
    Path("frames").mkdir()
    for index, picture in enumerate(moving_frames(4, (97, 99))):
        Image.fromarray(picture).save(f"frames/{index:03d}.png")
    code, _, err = run("frames", "-o", "out.mp4", "--fps", "5", "--every", "2", "--hold", "-q")
    assert code == 0, err
    times, pictures = played(Path("out.mp4"))
    assert times == pytest.approx([0, 0.2, 0.4, 0.6])
    assert pictures[0].shape == (98, 100, 3)  # rounded up, as half of the colours' resolution asks for


def test_a_class_keeps_its_colour(run) -> None:
    write_clip(Path("clip.mp4"), moving_frames(3))
    assert run("clip.mp4", "-q", "-c", "sky")[0] == 0
    for picture in played(Path("clip_segmented.mp4"))[1]:
        assert np.abs(picture[-5:, :5].mean((0, 1)) - picture[-5:, -5:].mean((0, 1))).max() < 60
        # A tint of 60 % leaves the photo's own colour little room.
        hue = picture.reshape(-1, 3).mean(0) - picture.mean()
        assert np.corrcoef(hue, class_colours(1)[0] - class_colours(1)[0].mean())[0, 1] > 0.9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_plays_after_a_stop(tmp_path: Path, number: int) -> None:
    write_clip(tmp_path / "clip.mp4", moving_frames(20) * 20)
    command = [sys.executable, "-m", "vocabseg", "segment", "clip.mp4", "-o", "out.mp4", *COMMON]
    obey = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=obey) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while " of 400 frames" not in lines[-1] and lines[-1]:
            lines.append(process.stderr.readline())
        process.send_signal(number)
        lines += process.stderr.read().splitlines()
        code = process.wait(60)
    assert (code, lines[-1]) == (130, "vocabseg: stopped"), lines
    told = next(line for line in lines if " of 400 frames" in line)
    assert int(told.split()[0]) <= len(played(tmp_path / "out.mp4")[0]) < 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]


def test_a_change_of_size_keeps_what_was_done(run) -> None:
    for index, picture in enumerate([*moving_frames(3), *moving_frames(2, (96, 100))]):
        Image.fromarray(picture).save(f"{index}.png")
    code, out, err = run(*(f"{index}.png" for index in range(5)), "-o", "out.mp4", "-q")
    assert (code, out) == (3, "out.mp4\n")
    assert "the frame at 0.120 s has 100 x 96 pixels, not 128 x 96 as before" in err
    assert len(played(Path("out.mp4"))[0]) == 3


def test_a_rate_of_next_to_nothing(tmp_path: Path) -> None:
    """Every 100,000th frame of 25 a second: less than one in a quarter of an hour."""
    path, times = tmp_path / "slow.mp4", [0.0, 4000.0]
    with path.open("wb") as file:
        writer = VideoWriter(file, path, 25 / 100_000)
        for picture, seconds in zip(moving_frames(2), times, strict=True):
            writer.write(picture, seconds)
        writer.close()
    assert played(path)[0] == pytest.approx(times)


def test_nothing_is_left_where_no_frame_was_written(tmp_path: Path) -> None:
    def failing() -> Sequence[FrameResult]:
        raise OutputError("no frame")
        yield

    for results, told in ((failing(), "no frame"), (iter(()), "no frame of the pictures was segmented")):
        with pytest.raises(Exception, match=told):
            record(results, Pictures([]), tmp_path / "out.mp4", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(run) -> None:
    write_clip(Path("clip.mp4"), moving_frames(1))
    Image.fromarray(moving_frames(1)[0]).save("a.png")
    for arguments, told in (
        (("clip.mp4", "a.png"), "clip.mp4 is a video, and there are 2 inputs"),
        (("clip.mp4", "-w", "panoptic"), "--write panoptic is not written of a video"),
        (("clip.mp4", "-o", "out.gif"), "cannot write a video to 'out.gif'"),
        (("clip.mp4", "-w", "json", "-o", "out.json"), "name it .jsonl"),
        (("clip.mp4", "-o", "clip.mp4"), "would replace the input"),
        (("clip.mp4", "--fps", "5"), "--fps goes with pictures"),
        (("clip.mp4", "--hold"), "--hold goes with --every 2 or more"),
        (("clip.mp4", "--masks", "a.png"), "--masks are those of images"),
        (("a.png", "--every", "2"), "go with a video"),
        (("no.mp4",), "no such video file: 'no.mp4'"),
        (("-", "-o", "out.mp4"), "a video is not made of standard input"),
        (("97",), "camera 97 cannot be opened"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert told in err.splitlines()[-1], (arguments, err)
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "clip.mp4"]
