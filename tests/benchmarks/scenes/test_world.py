"""The procedural world: repeatable, labels that say what is drawn, a split that holds, files that read back."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vocabseg.benchmarks.datasets.registry import get_dataset
from vocabseg.benchmarks.scenes.files import write_world
from vocabseg.benchmarks.scenes.shapes import coverage
from vocabseg.benchmarks.scenes.textures import BACKGROUNDS, pattern
from vocabseg.benchmarks.scenes.world import CLASSES, COLOURS, OBJECTS, SEEN, SHAPES, SURFACES, render_scene
from vocabseg.runtime.errors import OutputError

TRAINING_SCENES = 60


def test_the_vocabulary_has_100_objects_and_8_backgrounds():
    assert len(set(CLASSES)) == len(CLASSES) == len(SEEN) == 108
    assert len(OBJECTS) == len(COLOURS) * len(SHAPES) == 100
    assert OBJECTS[37] == f"{list(COLOURS)[7]} {SHAPES[3]}"


def test_every_unseen_word_is_in_a_seen_class():
    unseen = [name for name, seen in zip(CLASSES, SEEN, strict=True) if not seen]
    seen_words = {word for name, seen in zip(CLASSES, SEEN, strict=True) if seen for word in name.split()}
    assert len(unseen) == 20
    assert {word for name in unseen for word in name.split()} <= seen_words
    for words in (COLOURS, SHAPES):  # and the unseen pairs are spread over all words
        assert [sum(word in name.split() for name in unseen) for word in words] == [2] * 10


def test_training_scenes_hold_no_unseen_pair():
    drawn = set()
    for index in range(TRAINING_SCENES):
        scene = render_scene(3, "train", index, size=(96, 128))
        drawn |= {segment.class_index for segment in scene.segments} | set(np.unique(scene.labels).tolist())
    assert all(SEEN[index] for index in drawn)
    assert len(drawn) > 60


def test_validation_scenes_hold_seen_and_unseen_pairs():
    drawn = {segment.class_index for index in range(25) for segment in render_scene(3, "val", index).segments}
    assert {SEEN[index] for index in drawn} == {True, False}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**63), index=st.integers(0, 10**9), split=st.sampled_from(("train", "val", "test")))
def test_the_same_arguments_give_the_same_scene(seed, index, split):
    first, second = (render_scene(seed, split, index) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.labels, second.labels)
    assert first.segments == second.segments


def test_splits_seeds_and_indices_give_other_scenes():
    arguments = [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "test", 0), (0, "train", 1)]
    images = [render_scene(*given, size=(128, 128)).image for given in arguments]
    for place, image in enumerate(images):
        assert all((image != other).mean() > 0.5 for other in images[:place])


def test_labels_agree_with_segments_and_sizes():
    for index in range(10):
        scene = render_scene(1, "test", index)
        h, w = scene.labels.shape
        assert scene.image.shape == (h, w, 3)
        assert 176 <= min(h, w) <= 208
        assert sorted(segment.id for segment in scene.segments) == sorted(np.unique(scene.segmentation).tolist())
        for segment in scene.segments:
            assert set(np.unique(scene.labels[scene.segmentation == segment.id])) == {segment.class_index}
            assert (segment.surface in SURFACES) == (segment.class_index < len(OBJECTS))


def test_objects_have_their_colour():
    """The labelled pixels of a plain object are, by their median, closer to its colour's name than to any other."""
    right = total = 0
    for index in range(40):
        scene = render_scene(2, "test", index)
        for segment in scene.segments:
            if segment.surface != "plain":
                continue
            inside = cv2.erode((scene.segmentation == segment.id).astype(np.uint8), np.ones((3, 3)))
            if inside.sum() < 60:
                continue
            colour = np.median(scene.image[inside > 0], axis=0)
            distances = {name: np.abs(np.float32(value) - colour).sum() for name, value in COLOURS.items()}
            right += min(distances, key=distances.__getitem__) == CLASSES[segment.class_index].split()[0]
            total += 1
    assert total > 30
    assert right / total > 0.9


def test_a_shape_covers_the_pixels_it_should():
    cover = coverage("circle", (40.0, 40.0), 30.0, 1.0, 0.0, (80, 80))
    assert cover.sum() == pytest.approx(np.pi * (0.92 * 30) ** 2, rel=0.01)
    assert 0 < cover[(cover > 0) & (cover < 1)].mean() < 1  # edges are anti-aliased
    ring = coverage("ring", (40.0, 40.0), 30.0, 1.0, 0.0, (80, 80))
    assert ring[40, 40] == 0
    assert ring[40, 17] == 1


def test_shapes_are_told_apart():
    """No two shapes cover the same pixels at the same place."""
    covers = [coverage(shape, (40.0, 40.0), 30.0, 1.0, 0.0, (80, 80)) > 0.5 for shape in SHAPES]
    for place, cover in enumerate(covers):
        for other in covers[:place]:
            assert (cover & other).sum() / (cover | other).sum() < 0.88


def test_surfaces_differ():
    shares = {name: pattern(name, (80, 80), (40, 40), 0.3, 12).mean() for name in SURFACES}
    assert shares["plain"] == 0
    assert shares["striped"] == pytest.approx(0.42, abs=0.03)
    assert shares["dotted"] == pytest.approx(np.pi * 0.085, abs=0.03)
    assert shares["checkered"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_fill_any_size(name):
    texture = BACKGROUNDS[name](np.random.default_rng(0), (97, 131), 0.5)
    assert texture.shape == (97, 131, 3)
    assert np.isfinite(texture).all()
    assert texture.std() > 5


def test_a_scene_of_another_size_and_count():
    scene = render_scene(4, "test", 0, size=(300, 420), objects=3)
    assert scene.image.shape == (300, 420, 3)
    assert 1 <= sum(segment.surface is not None for segment in scene.segments) <= 3


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match="no split 'dev'"):
        render_scene(0, "dev")
    with pytest.raises(ValueError, match="64 x 64 pixels is too small"):
        render_scene(0, size=(64, 64))


def test_written_scenes_read_back(tmp_path):
    folder = write_world(tmp_path / "world", "val", 3, seed=5)
    dataset = get_dataset("world", folder)
    assert dataset.classes == CLASSES
    assert dataset.seen == SEEN
    assert len(dataset) == 3
    for index, sample in enumerate(dataset.samples()):
        scene = render_scene(5, "val", index)
        assert np.array_equal(cv2.imread(str(sample.image))[..., ::-1], scene.image)
        assert np.array_equal(dataset.labels(sample), scene.labels)
        segmentation, segments = dataset.panoptic(sample)
        assert np.array_equal(segmentation, scene.segmentation)
        assert {(s.id, s.class_index) for s in segments} == {(s.id, s.class_index) for s in scene.segments}
        objects = [segment for segment in scene.segments if segment.surface is not None]
        truths = dataset.instances(sample)
        assert sorted(t.class_index for t in truths) == sorted(s.class_index for s in objects)
        assert sorted(t.area for t in truths) == sorted(int((scene.segmentation == s.id).sum()) for s in objects)
    assert json.loads((folder / "classes.json").read_text())["things"] == list(range(100))


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the world to"):
        write_world(tmp_path / "file" / "world", "val", 1)
