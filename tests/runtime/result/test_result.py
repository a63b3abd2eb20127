"""A result computes nothing until it is asked, and what it then gives agrees with its labels."""

import copy
import json
import pickle
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vocabseg.benchmarks.datasets.coco_files import PanopticFile, PanopticTruth, read_annotations
from vocabseg.runtime.errors import OutputError, VocabsegError, VocabularyError
from vocabseg.runtime.kernels import load_kernels, reference
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.result.categories import Categories
from vocabseg.runtime.result.coco import coco_panoptic
from vocabseg.runtime.result.colours import class_colours
from vocabseg.runtime.result.evidence import GivenEvidence
from vocabseg.runtime.result.panoptic import coco_box, panoptic_segments, rle_decode
from vocabseg.runtime.result.result import Result

NAMES = ["cat", "трава", "sky \N{CLOUD}"]


def made(kernels: Any = reference) -> Result:
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(6, 8, 8)).astype(np.float32) * 4
    probabilities = rng.dirichlet(np.full(4, 0.3), 6).astype(np.float32)
    sizes = (32, 32), (30, 28), (45, 42)
    masks = Masks(logits, *sizes)
    evidence = GivenEvidence(masks, probabilities[:, :3].copy(), probabilities[:, 3].copy(), kernels)
    labels, scores = reference.compose(masks, evidence.class_probabilities)
    return Result(labels, scores, NAMES, rng.integers(0, 256, (45, 42, 3), np.uint8), evidence)


def labelled(labels, classes=NAMES, **kwargs) -> Result:
    labels = np.asarray(labels, np.int32)
    return Result(labels, np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape), classes, **kwargs)


def test_creation_computes_nothing():
    class Untouchable:
        def __getattribute__(self, name):
            raise AssertionError(f"{name} was asked for")

    result = Result(np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float32), ("a", "b"), evidence=Untouchable())
    assert result.classes == ["a", "b"]
    assert repr(result) == "Result(2 x 3 pixels, 2 classes)"


def test_ids_colours_and_the_contrast_class(tmp_path):
    plain = made()
    known = Categories((7, 90, 91), ((255, 128, 0), None, None), (True, False, False), other=2)
    result = Result(plain.labels, plain.scores, [*NAMES[:2], "other"], plain.image, plain.evidence, known)
    colours = [(255, 128, 0), tuple(class_colours(2)[1]), (128, 128, 128)]
    described = pickle.loads(pickle.dumps(result)).to_json()
    assert [one["category_id"] for one in described["segments"]] == [known.id_of(i) for i in np.unique(result.labels)]
    assert described["categories"][1] == {"id": 90, "name": "трава", "isthing": 0, "color": list(colours[1])}
    assert "categories" not in plain.to_json()
    result.save_labels(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as picture:
        table = np.reshape(picture.getpalette()[:9], (3, 3))
    np.testing.assert_array_equal(table, colours)
    bare = Result(result.labels, result.scores, result.classes, categories=known)
    flat = bare.draw(legend=False, opacity=1.0, labels=False)
    inside = np.zeros(result.labels.shape, bool)
    inside[1:-1, 1:-1] = all_equal = np.ones((43, 40), bool)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        all_equal &= result.labels[1:-1, 1:-1] == result.labels[dy : dy + 43, dx : dx + 40]
    inside[1:-1, 1:-1] = all_equal
    np.testing.assert_array_equal(flat[inside], np.array(colours, np.uint8)[result.labels[inside]])
    every, without = plain.panoptic(None, 0.1, 0)[1], result.panoptic(None, 0.1, 0)[1]
    assert {one["category_id"] for one in every} == {0, 2}
    assert {(one["category_id"], one["isthing"]) for one in without} == {(0, True)}
    assert 2 in {one.class_index for one in plain.instances()}
    assert {one.class_index for one in result.instances()} <= {0, 1}
    result.save_coco_panoptic(tmp_path / "p.json", "a.png", None, 0.1, 0)
    content = json.loads((tmp_path / "p.json").read_text())
    assert [one["id"] for one in content["categories"]] == [7, 90]
    assert {one["category_id"] for one in content["annotations"][0]["segments_info"]} == {7}


@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy, copy.copy])
@pytest.mark.parametrize("kernels", [reference, load_kernels("host")])
def test_a_copy_answers_as_the_original(copied, kernels):
    result = made(kernels)
    again = copied(result)
    for name in ("labels", "scores", "image"):
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name))
    assert again.classes == result.classes
    assert again.to_json() == result.to_json()
    np.testing.assert_array_equal(again.class_scores(), result.class_scores())
    np.testing.assert_array_equal(again.panoptic()[0], result.panoptic()[0])
    plain = copied(labelled([[0, 1], [2, -1]]))
    assert plain.to_json() == labelled([[0, 1], [2, -1]]).to_json()
    assert plain.evidence is plain.image is None


def test_class_scores_agree_with_labels_and_scores():
    result = made()
    scores = result.class_scores()
    assert scores.shape == (3, 45, 42)
    np.testing.assert_allclose(scores.max(0), result.scores, atol=1e-6)
    top_two = np.sort(scores, axis=0)[-2:]
    clear = top_two[1] - top_two[0] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(scores.argmax(0)[clear], result.labels[clear])


def test_panoptic_takes_the_evidence_as_it_is():
    result = made()
    evidence = result.evidence
    masks = reference.resample_masks(evidence.masks)
    probabilities = np.column_stack([evidence.class_probabilities, evidence.no_object])
    for things, indices in ((None, {0, 1, 2}), (["sky \N{CLOUD}", 0], {0, 2}), ([], set())):
        segmentation, segments = result.panoptic(things, 0.3, 0.2)
        expected, expected_segments = panoptic_segments(probabilities, masks, indices, 0.3, 0.2)
        np.testing.assert_array_equal(segmentation, expected)
        assert segments == expected_segments
        assert segments


def test_instances_by_name():
    found = made().instances(["cat"])
    assert found
    assert {instance.class_index for instance in found} == {0}
    assert found[0].mask.shape == (45, 42)
    assert len(made().instances(top_k=2)) <= 2


@pytest.mark.parametrize(
    ("things", "message"),
    [
        (["dog"], "'dog' in things is not one of 3 classes"),
        ([3], "3 in things"),
        ([-1], "-1 in things"),
        ("cat", "give a list"),
    ],
)
def test_unknown_things(things, message):
    with pytest.raises(VocabularyError, match=message):
        made().panoptic(things)
    with pytest.raises(VocabularyError, match=message):
        made().instances(things)


def test_without_evidence_only_what_the_labels_tell():
    result = labelled([[0, 1]])
    for question in (result.class_scores, result.panoptic, result.instances):
        with pytest.raises(VocabsegError, match="only labels and scores"):
            question()
    assert len(result.to_json()["segments"]) == 2


def test_json_describes_each_class_that_is_present():
    result = labelled([[2, 2, -1], [0, 2, -1]])
    content = json.loads(json.dumps(result.to_json()))
    assert content["image_size"] == [2, 3]
    assert content["classes"] == NAMES
    cat, sky = content["segments"]
    assert list(sky) == ["category_id", "name", "area", "bbox", "segmentation", "score"]
    assert (cat["category_id"], cat["name"], cat["area"], cat["bbox"]) == (0, "cat", 1, [0, 1, 1, 1])
    assert (sky["category_id"], sky["area"], sky["bbox"]) == (2, 3, [0, 0, 2, 2])
    assert sky["score"] == pytest.approx((0 + 0.2 + 0.8) / 3)
    np.testing.assert_array_equal(rle_decode(sky["segmentation"]), result.labels == 2)


def test_described_scores_are_in_the_unit_interval_though_votes_are_not():
    result = labelled([[0, 0, 1]])
    result.scores[:] = [[2.5, 0.5, 1.25]]
    assert [segment["score"] for segment in result.to_json()["segments"]] == pytest.approx([0.75, 1])
    pytest.importorskip("supervision")
    assert result.to_detections().confidence.tolist() == pytest.approx([0.75, 1])


def test_coco_panoptic_files_are_read_back_as_they_were(tmp_path):
    result = made()
    segmentation, segments = result.panoptic(["cat"], 0.3, 0.3)
    assert len(segments) > 1
    target = tmp_path / "x_panoptic.json"
    result.save_coco_panoptic(target, "x.jpg", ["cat"], 0.3, 0.3, {"model": "demo"})
    file = read_annotations(target, PanopticFile)
    read = PanopticTruth(file, tmp_path, {index: index for index in range(3)})("x")
    np.testing.assert_array_equal(read[0], segmentation)
    assert [(one.id, one.class_index) for one in read[1]] == [(one["id"], one["category_id"]) for one in segments]
    assert [(each.id, each.name, each.isthing) for each in file.categories] == [
        (index, name, int(name == "cat")) for index, name in enumerate(NAMES)
    ]
    content = json.loads(target.read_text())
    assert content["info"] == {"model": "demo"}
    assert content["images"] == [{"id": "x", "file_name": "x.jpg", "height": 45, "width": 42}]
    for one, given in zip(content["annotations"][0]["segments_info"], segments, strict=True):
        assert one["area"] == given["area"] == np.count_nonzero(segmentation == one["id"])
        assert one["bbox"] == coco_box(segmentation == one["id"])
    with pytest.raises(OutputError, match=r"name it \.json"):
        result.save_coco_panoptic(tmp_path / "y.png", "x.jpg")


def test_ids_above_255_are_kept(tmp_path):
    segmentation = np.arange(300, dtype=np.int32).reshape(15, 20)
    segments = [{"id": number, "category_id": 0, "score": 0.5, "area": 1} for number in range(1, 300)]
    picture, _ = coco_panoptic("a.png", "b.json", segmentation, segments, ["a"], [0])
    np.testing.assert_array_equal(picture.astype(np.int64) @ [1, 256, 65536], segmentation)


def test_json_covers_the_image():
    result = made()
    covered = sum(rle_decode(segment["segmentation"]) for segment in result.to_json()["segments"])
    assert (covered == 1).all()


def test_detections():
    supervision = pytest.importorskip("supervision")
    result = labelled([[2, 2, -1], [0, 2, -1]])
    detections = result.to_detections()
    assert isinstance(detections, supervision.Detections)
    assert len(detections) == 2
    assert detections.xyxy.tolist() == [[0, 1, 1, 2], [0, 0, 2, 2]]
    assert detections.class_id.tolist() == [0, 2]
    assert detections.data["class_name"].tolist() == ["cat", "sky \N{CLOUD}"]
    assert detections.confidence[1] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(detections.mask[1], result.labels == 2)
    picture = supervision.MaskAnnotator().annotate(np.zeros((2, 3, 3), np.uint8), detections)
    assert picture[0, 0].any()
    assert not picture[0, 2].any()
    assert len(labelled([[-1]]).to_detections()) == 0


def test_detections_without_supervision(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(VocabsegError, match="pip install supervision"):
        made().to_detections()


def test_save_writes_the_overlay(tmp_path):
    result = made()
    for suffix, tolerance in ((".png", 0), (".PNG", 0), (".jpg", 12), (".jpeg", 12), (".webp", 12)):
        result.save(tmp_path / f"out{suffix}")
        saved = np.asarray(Image.open(tmp_path / f"out{suffix}")).astype(int)
        assert np.abs(saved - result.draw()).mean() <= tolerance
    assert result.draw(legend=False).shape == (45, 42, 3)
    assert result.draw(theme="dark").shape == result.draw().shape
    assert labelled([[0]]).draw().ndim == 3


def test_what_cannot_be_saved(tmp_path):
    result = made()
    for path in ("out.gif", "out", "out.json"):
        with pytest.raises(OutputError, match=r"use one of the suffixes \.png, \.jpg"):
            result.save(tmp_path / path)
    with pytest.raises(OutputError, match=r"name it \.png"):
        result.save_labels(tmp_path / "out.jpg")
    with pytest.raises(OutputError, match=r"name it \.json"):
        result.save_json(tmp_path / "out.txt")
    with pytest.raises(OutputError, match="does not exist"):
        result.save(tmp_path / "missing" / "out.png")
    wide = labelled(np.zeros((1, 17_000)))
    with pytest.raises(OutputError, match=r"WEBP of 17000 x .*use \.png"):
        wide.save(tmp_path / "out.webp")
    assert list(tmp_path.iterdir()) == []


def test_labels_as_a_palette_picture(tmp_path):
    result = made()
    result.save_labels(tmp_path / "labels.png")
    image = Image.open(tmp_path / "labels.png")
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), result.labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), class_colours(3)[result.labels])


@pytest.mark.parametrize(
    ("count", "gaps", "mode", "nothing"),
    [(255, True, "P", 255), (256, False, "P", None), (256, True, "I;16", 65535), (10_000, True, "I;16", 65535)],
)
def test_labels_of_many_classes(tmp_path, count, gaps, mode, nothing):
    labels = np.array([[0, count - 1, -1 if gaps else 1]], np.int32)
    labelled(labels, [f"class {i}" for i in range(count)]).save_labels(tmp_path / "labels.png")
    image = Image.open(tmp_path / "labels.png")
    assert image.mode in (mode, mode.partition(";")[0])  # Pillow 10 opens 16 bits as "I"
    assert np.asarray(image).tolist() == [[0, count - 1, nothing if gaps else 1]]


def test_too_many_classes_for_a_png(tmp_path):
    with pytest.raises(OutputError, match="cannot hold 65537 classes"):
        labelled([[0]], [""] * 65_537).save_labels(tmp_path / "labels.png")


def test_json_files(tmp_path):
    result = made()
    result.save_json(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == result.to_json()
    odd = labelled([[0]], ["\udc80 \U0001f408"])
    odd.save_json(tmp_path / "odd.json")
    assert json.loads((tmp_path / "odd.json").read_text("utf-8"))["classes"] == odd.classes


def test_panoptic_file(tmp_path):
    result = made()
    result.save_panoptic(tmp_path / "out.json", ["cat"], 0.3, 0.2)
    content = json.loads((tmp_path / "out.json").read_text())
    segmentation, segments = result.panoptic(["cat"], 0.3, 0.2)
    assert [s["id"] for s in content["segments"]] == [s["id"] for s in segments]
    for segment in content["segments"]:
        assert segment["name"] == NAMES[segment["category_id"]]
        assert segment["isthing"] == (segment["name"] == "cat")
        np.testing.assert_array_equal(rle_decode(segment["segmentation"]), segmentation == segment["id"])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "out.png").write_bytes(b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="no space left"):
        made().save(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
