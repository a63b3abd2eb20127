"""The frames of videos, cameras and pictures, their times, and what is said of those that cannot be read."""

import functools
import http.server
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.video.clips import av, moving_frames, played, write_clip
from vocabseg.runtime.errors import ConfigurationError, ImageError, VideoError
from vocabseg.video import source as source_module
from vocabseg.video.read_ahead import read_ahead
from vocabseg.video.source import Camera, Frame, FrameSource, Pictures, VideoStream, open_source


def test_frames_and_their_times_are_those_of_the_file(tmp_path: Path) -> None:
    frames, times = moving_frames(6), [0.0, 0.04, 0.2, 0.21, 0.5, 1.5]
    source = open_source(write_clip(tmp_path / "clip.mp4", frames, times))
    assert source.total == 6
    found = list(read_ahead(source))
    assert [frame.index for frame in found] == list(range(6))
    assert [frame.seconds for frame in found] == pytest.approx(times, abs=1e-6)
    for frame in found:  # with the codec's loss it is still most like the one that was given
        assert np.argmin([np.abs(frame.image.astype(int) - given).mean() for given in frames]) == frame.index


def test_times_start_at_the_first_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "late.mkv", moving_frames(3), [5.0, 5.5, 6.0])
    source = VideoStream(str(path))
    assert [frame.seconds for frame in source] == pytest.approx([0, 0.5, 1])
    assert source.start == pytest.approx(5)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_the_rotation_in_the_header_is_applied(tmp_path: Path, matrix: tuple[int, ...], turns: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", moving_frames(2))
    plain = next(iter(VideoStream(str(path)))).image
    content = path.read_bytes()
    place = content.index(b"tkhd") + 4 + 40  # the matrix of a version 0 header: ISO/IEC 14496-12, 8.3.2
    a, b, c, d = (value << 16 for value in matrix)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + turned + content[place + 36 :])
    assert np.array_equal(next(iter(VideoStream(str(path)))).image, np.rot90(plain, turns))


def test_pictures_have_a_rate(tmp_path: Path) -> None:
    found = list(Pictures(moving_frames(3), 10))
    assert [frame.seconds for frame in found] == pytest.approx([0, 0.1, 0.2])
    with pytest.raises(VideoError, match="0 frames per second"):
        Pictures([], 0)
    with pytest.raises(ImageError, match="no such image file"):
        list(read_ahead(Pictures([tmp_path / "no.png"])))


def test_a_camera_is_read_and_told_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    with pytest.raises(VideoError, match="camera 97 cannot be opened"):
        open_source("97")
    path, capture = write_clip(tmp_path / "clip.mp4", moving_frames(4)), cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: capture(str(path)))
    expected = played(path)[1]
    camera = Camera(0)
    assert (camera.live, camera.rate) == (True, 25)
    frames = iter(camera)
    found = [next(frames) for _ in range(len(expected))]
    with pytest.raises(VideoError, match="camera 0 gives no more pictures"):
        next(frames)
    assert np.abs(found[0].image.astype(int) - expected[0]).mean() < 3  # not with red and blue exchanged


def test_a_live_source_does_not_wait_and_a_file_does() -> None:
    frames = moving_frames(1) * 30
    for live in (False, True):
        source = Pictures(frames)
        source.live = live
        found, reader = [], read_ahead(source)
        found.append(next(reader))
        while live and source.dropped < 10:  # nothing is taken, and the source goes on
            threading.Event().wait(0.01)
        found.extend(reader)
        assert len(found) + source.dropped == 30
        assert source.dropped >= 10 if live else source.dropped == 0


def test_an_abandoned_reader_ends() -> None:
    before = threading.active_count()
    reader = read_ahead(Pictures(moving_frames(1) * 100))
    next(reader)
    reader.close()
    assert threading.active_count() == before


def test_a_stream_over_the_network_equals_the_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", moving_frames(5))
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://user:secret@127.0.0.1:{server.server_port}"
        found = [frame.image for frame in read_ahead(open_source(f"{address}/clip.mp4"))]
        with pytest.raises(VideoError, match="cannot reach the video 'http:") as told:
            open_source(f"{address}/no.mp4")
        server.shutdown()
    assert "secret" not in str(told.value)
    assert np.array_equal(found, [frame.image for frame in VideoStream(str(path))])


def test_a_live_stream_is_read_and_its_silence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over plain TCP: no server for RTSP can be had here."""
    path = write_clip(tmp_path / "clip.ts", moving_frames(5))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

        def send() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(path.read_bytes())

        thread = threading.Thread(target=send)
        thread.start()
        source = VideoStream(address)
        found = [frame.image for frame in source]
        thread.join()
        assert source.live
        assert np.array_equal(found, [frame.image for frame in VideoStream(str(path))])
        monkeypatch.setattr(source_module, "TIMEOUT", 0.3)
        with pytest.raises(VideoError, match="no answer for 0 seconds"):
            VideoStream(address)  # connected, and no one sends


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *given: object) -> None:
        pass


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    for name, told in (
        ("no.mp4", "no such video file"),
        ("text.mp4", "cannot read the video .*invalid data"),
        ("list.m3u8", "cannot read the video"),
        (".", "is a folder"),
    ):
        with pytest.raises(VideoError, match=told):
            open_source(tmp_path / name)
    with pytest.raises(VideoError, match="cannot reach the video 'rtsp://127"):
        open_source("rtsp://user:secret@127.0.0.1:9/x")
    path = write_clip(tmp_path / "clip.mp4", moving_frames(2))
    monkeypatch.setenv("VOCABSEG_MAX_PIXELS", "1000")
    with pytest.raises(VideoError, match="128 x 96 pixels, more than the limit of 0"):
        open_source(path)


def test_damaged_pieces_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", moving_frames(12))
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[4]
        start, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)  # the length of a unit is 0, which none has
    path.write_bytes(content)
    source = VideoStream(str(path))
    found = list(source)
    assert (len(found), source.damaged) == (11, 1)
    assert all(frame.image.shape == (96, 128, 3) for frame in found)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
def test_a_file_whose_end_is_missing_is_told(tmp_path: Path, name: str) -> None:
    frames = moving_frames(30)
    path = write_clip(tmp_path / name, frames)
    if name.endswith(".mp4"):  # written anew with its index before the pictures, as for the web
        web, how = tmp_path / "web.mp4", {"movflags": "faststart"}
        with av.open(str(path)) as old, av.open(str(web), "w", options=how) as new:
            copy = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = copy
                    new.mux(packet)
        path = web
    assert len(list(VideoStream(str(path)))) == 30
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    found: list[Frame] = []
    with pytest.raises(VideoError, match=r"breaks off after 0\.\d of 1\.2 seconds"):
        found.extend(read_ahead(VideoStream(str(path))))
    assert 0 < len(found) < 27
    stopped = VideoStream(str(path))
    assert all(frame.index < 3 or stopped.stop() is None for frame in stopped)  # whoever stops it asks for no end


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
def test_frames_of_uneven_length_and_longer_audio_are_no_missing_end(tmp_path: Path, name: str) -> None:
    times = [0.01 * index * index for index in range(12)]
    assert len(list(VideoStream(str(write_clip(tmp_path / name, moving_frames(12), times))))) == 12
    path = write_clip(tmp_path / f"sound_{name}", moving_frames(12), [index / 250 for index in range(12)], sound=True)
    assert len(list(VideoStream(str(path)))) == 12


def test_a_stopped_source_gives_out_no_frame_that_waits() -> None:
    source = Pictures(moving_frames(1) * 30)
    reader = read_ahead(source)
    next(reader)
    threading.Event().wait(0.05)  # the next ones are read meanwhile
    source.stop()
    assert list(reader) == []


def test_no_part_of_a_password_is_told() -> None:
    with pytest.raises(VideoError, match="cannot reach the video 'rtsp://127") as told:
        open_source("rtsp://user:se@cret@127.0.0.1:9/x@y")
    assert "cret" not in str(told.value)
    assert "/x@y" in str(told.value)


def test_av_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(VideoError, match="videos need the package av"):
        open_source(tmp_path / "clip.mp4")


def test_settings_that_do_not_go_together() -> None:
    from vocabseg.video.segmentation import segment_video

    for settings in ({"every": 0}, {"every": 61, "hold": True}):
        with pytest.raises(ConfigurationError, match="every"):
            next(segment_video(None, FrameSource(), None, **settings))  # type: ignore[arg-type]
