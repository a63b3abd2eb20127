"""Results of a video's frames: which frames there are, objects that keep their numbers, embeddings that are kept."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.video.clips import moving_frames, small_segmenter
from vocabseg.benchmarks.scenes.moving import moving_scenes
from vocabseg.benchmarks.scenes.world import CLASSES, render_scene
from vocabseg.runtime.errors import ConfigurationError, EngineError, ImageError, VideoError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.result.evidence import GivenEvidence
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.video.read_ahead import AHEAD
from vocabseg.video.reuse import EmbeddingReuse
from vocabseg.video.segmentation import FrameResult, segment_video
from vocabseg.video.tags import tagged
from vocabseg.video.tracking import ObjectTracker


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return small_segmenter()


def encoded_regions(segmenter: Segmenter) -> list[int]:
    """How many regions the image encoder gets, call by call from now on; ends with the fixture's observer."""
    counts: list[int] = []

    class Watch:
        def stage(self, *given: object) -> None:
            pass

        def note(self, name: str, arrays: dict) -> None:
            if name == "crop_regions":
                counts.append(len(arrays["crops"]))

    segmenter.stages.observer = Watch()
    return counts


def test_results_equal_those_of_the_frames_alone(segmenter: Segmenter) -> None:
    frames = moving_frames(5)
    found = list(segment_video(segmenter, frames, CLASSES, rate=10))
    assert [(frame.index, frame.held) for frame in found] == [(index, False) for index in range(5)]
    assert [frame.seconds for frame in found] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for frame, picture in zip(found, frames, strict=True):
        assert np.array_equal(frame.result.labels, segmenter(picture, CLASSES).labels)
        assert np.array_equal(frame.result.image, picture)


def test_every_nth_frame_and_those_between(segmenter: Segmenter) -> None:
    frames = moving_frames(8)
    assert [frame.index for frame in segment_video(segmenter, frames, CLASSES, every=3)] == [0, 3, 6]
    found = list(segment_video(segmenter, frames, CLASSES, every=3, hold=True))
    assert [frame.index for frame in found] == list(range(8))
    assert [frame.held for frame in found] == [False, True, True, False, True, True, False, True]
    for frame in found:
        assert np.array_equal(frame.result.labels, found[frame.index - frame.index % 3].result.labels)
        assert np.array_equal(frame.result.image, frames[frame.index])


def test_held_frames_wait_only_for_the_frame_before_them(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that wait are whole pictures: with threads that each begin one, hundreds of them would."""
    monkeypatch.setenv("VOCABSEG_THREADS", "4")
    picture, taken = moving_frames(1)[0], []

    def pictures() -> Iterator[np.ndarray]:
        for index in range(100):
            taken.append(index)
            yield picture

    results = segment_video(segmenter, pictures(), CLASSES, every=10, hold=True)
    next(results)
    assert len(taken) <= AHEAD + 3
    next(results)
    assert len(taken) <= 10 + AHEAD + 3
    results.close()


def test_a_frame_of_another_size_cannot_have_the_labels_of_the_last(segmenter: Segmenter) -> None:
    frames = [*moving_frames(2), *moving_frames(2, (96, 100))]
    sizes = [frame.result.labels.shape for frame in segment_video(segmenter, frames, CLASSES)]
    assert sizes == [(96, 128)] * 2 + [(96, 100)] * 2
    with pytest.raises(ConfigurationError, match="frame 2 has another size"):
        list(segment_video(segmenter, frames, CLASSES, every=4, hold=True))


def test_an_error_comes_after_the_frames_before_it(segmenter: Segmenter) -> None:
    results = segment_video(segmenter, [*moving_frames(3), "no.png"], CLASSES)
    assert [next(results).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ImageError, match="no such image file"):
        next(results)


def test_a_still_video_is_encoded_once(segmenter: Segmenter) -> None:
    picture = moving_frames(1)[0]
    reuse = EmbeddingReuse(0.5)
    counts = encoded_regions(segmenter)
    found = list(segment_video(segmenter, [picture] * 4, CLASSES, reuse=reuse))
    segmenter.stages.observer = None
    regions = sum(counts)
    assert regions > 0
    assert (reuse.regions, reuse.reused) == (4 * regions, 3 * regions)
    alone = segmenter(picture, CLASSES)
    for frame in found:
        assert np.array_equal(frame.result.labels, alone.labels)
        assert np.allclose(frame.result.scores, alone.scores, atol=1e-5)


def test_what_changes_is_encoded_again(segmenter: Segmenter) -> None:
    """One object moves: only some regions are encoded, and nearly all labels are those without reuse."""
    frames = moving_frames(6, objects=2, moving=1)
    reuse, counts = EmbeddingReuse(0.5), encoded_regions(segmenter)
    found = list(segment_video(segmenter, frames, CLASSES, reuse=reuse))
    segmenter.stages.observer = None
    assert sum(counts) == reuse.regions - reuse.reused
    assert 0 < reuse.reused < reuse.regions
    same = [(frame.result.labels == segmenter(frame.result.image, CLASSES).labels).mean() for frame in found]
    assert np.mean(same) >= 0.995
    # Another scene of the same size shares nothing with the one before.
    other = render_scene(5, "test", 9, size=(96, 128)).image
    reuse = EmbeddingReuse(0.5)
    cut = list(segment_video(segmenter, [frames[0], other], CLASSES, reuse=reuse))
    assert np.mean(cut[1].result.labels == segmenter(other, CLASSES).labels) >= 0.995


def test_slow_changes_add_up(segmenter: Segmenter) -> None:
    """Light that fades by one step a frame is never a change from the frame before, but from the one encoded."""
    picture = moving_frames(1)[0].astype(int)
    frames = [np.clip(picture - 3 * step, 0, 255).astype(np.uint8) for step in range(8)]
    few, many = EmbeddingReuse(0.5, 0.5, 7.0), EmbeddingReuse(0.5, 0.5, 1000.0)
    for reuse in (few, many):
        list(segment_video(segmenter, frames, CLASSES, reuse=reuse))
    assert many.reused - few.reused >= many.regions // 8


def test_reuse_is_refused_where_it_cannot_be(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(segmenter), "per_pixel", True)
    with pytest.raises(EngineError, match="not reused by a per-pixel model"):
        next(segment_video(segmenter, moving_frames(1), CLASSES, reuse=EmbeddingReuse(0.5)))
    with pytest.raises(ConfigurationError, match="an overlap of 2"):
        EmbeddingReuse(0.5, 2.0)


def test_objects_keep_their_numbers_while_they_move() -> None:
    """With masks and classes as they are in the scene: who is who is left to the tracker alone."""
    pytest.importorskip("trackers", reason="tracking needs the packages trackers and supervision")
    tracker, kernels = ObjectTracker(25, CLASSES[:100]), load_kernels(None)
    numbers: dict[int, list[int | None]] = {}
    for index, scene in enumerate(moving_scenes(2, 1, 12, (96, 128))):
        size, present = scene.labels.shape, scene.segments[:: 1 if index % 2 else -1]  # their order says nothing
        logits = np.stack([np.where(scene.segmentation == one.id, 9, -9) for one in present]).astype(np.float32)
        chances = np.zeros((len(present), len(CLASSES)), np.float32)
        chances[range(len(present)), [one.class_index for one in present]] = 0.95
        evidence = GivenEvidence(Masks(logits, size, size, size), chances, np.zeros(len(present), np.float32), kernels)
        result = Result(scene.labels.astype(np.int32), np.ones(size, np.float32), CLASSES, scene.image, evidence)
        frame = FrameResult(index, index / 25, result, False, *tracker.follow(result, index / 25))
        assert frame.segmentation is not None
        for segment in frame.described()["segments"]:
            inside = scene.segmentation[frame.segmentation == segment["id"]]
            assert segment["area"] == len(inside)
            numbers.setdefault(int(np.bincount(inside).argmax()), []).append(segment["track_id"])
    things = {id_: found for id_, found in numbers.items() if any(found)}
    assert len(things) == 3, numbers
    # None in the first frame that shows an object, and then always the same.
    assert all(found == [None, *found[1:2] * (len(found) - 1)] for found in things.values()), things
    assert len({found[1] for found in things.values()}) == 3
    assert set(numbers) - set(things), "the background has no number"


def test_tracking_names_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trackers", None)
    with pytest.raises(VideoError, match="pip install --no-deps trackers"):
        ObjectTracker(25)


def test_a_stopped_source_ends_the_results(segmenter: Segmenter) -> None:
    from vocabseg.video.source import Pictures

    source = Pictures(moving_frames(1) * 1000)
    results = segment_video(segmenter, source, CLASSES)
    next(results)
    source.stop()
    began, rest = time.monotonic(), list(results)
    assert len(rest) < 20
    assert time.monotonic() - began < 60


def test_frames_are_drawn_in_the_styles_of_images(segmenter: Segmenter) -> None:
    (frame,) = segment_video(segmenter, moving_frames(1), CLASSES)
    plain = frame.result.draw(legend=False, style="flat", labels=False)
    np.testing.assert_array_equal(tagged(frame, "flat", labels=False), plain)
    assert (tagged(frame, "flat") != plain).any()
