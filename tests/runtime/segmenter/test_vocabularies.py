"""Synonyms, the contrast class and example images, on the demo model: the rules, and that they do what they are for."""

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vocabseg import Vocabulary, load
from vocabseg.benchmarks.scenes.world import CLASSES, render_scene
from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.segmenter.classify import class_probabilities, similarity, softmax
from vocabseg.runtime.text.contrast import NOUNS, candidates
from vocabseg.runtime.text.embedder import TextEmbedder

NAMES = ["water", "cloudy sky", "red star"]


@pytest.fixture(scope="module")
def segmenter():
    return load(device="cpu", engine="onnxruntime")


@pytest.fixture(scope="module")
def scene():
    return render_scene(0, "test", 3)


@pytest.fixture(scope="module")
def regions(segmenter, scene):
    return segmenter.propose(scene.image)


def present(scene):
    return [CLASSES[index] for index in np.unique(scene.labels)]


def agreement(result, scene):
    """The share of pixels whose class is shown by its right name."""
    places = [CLASSES.index(name) if name in CLASSES else -1 for name in result.classes]
    return float((np.array(places)[result.labels] == scene.labels).mean())


def test_the_best_name_of_a_class_counts_before_the_softmax(segmenter, regions):
    """Each side's probabilities are those of a softmax over the highest similarities, written out here."""
    written = ["water|lake|brick wall", "cloudy sky", "red star|orange star"]
    flat = Vocabulary([name for entry in written for name in entry.split("|")])
    ensemble = segmenter.bundle.manifest.ensemble
    query = similarity(regions.query_embeddings, segmenter.text.query_matrix(flat), ensemble.temperature)
    region = similarity(regions.embeddings, segmenter.text.region_matrix(flat), ensemble.temperature)
    groups = [[0, 1, 2], [3], [4, 5]]
    best = [np.stack([side[:, group].max(1) for group in groups], 1) for side in (query, region)]
    queries = softmax(np.concatenate([best[0], query[:, -1:]], 1))
    evidence = np.ones_like(best[0])
    evidence[regions.valid] = softmax(best[1])
    result = regions.classify(written)
    wanted = queries[:, :3] ** np.float32(1 - ensemble.weight) * evidence ** np.float32(ensemble.weight)
    np.testing.assert_allclose(result.evidence.class_probabilities, wanted, rtol=1e-5)
    np.testing.assert_allclose(result.evidence.no_object, queries[:, -1], rtol=1e-5)
    assert result.classes == ["water", "cloudy sky", "red star"]


def test_names_alone_take_the_old_way(segmenter, regions):
    """One name per class: no further step, the same bits; and the same name twice as a class changes nothing."""
    plain = Vocabulary(NAMES)
    assert all(segmenter.text.first_names(plain, side) is None for side in ("query", "region"))
    result = regions.classify(plain)
    text = [matrix(plain) for matrix in (segmenter.text.query_matrix, segmenter.text.region_matrix)]
    wanted = class_probabilities(
        regions.query_embeddings, text[0], regions.valid, regions.embeddings, text[1], None, regions.ensemble
    )
    np.testing.assert_array_equal(result.evidence.class_probabilities, wanted)
    before = dict(segmenter.text.counts)
    again = regions.classify(["water|red star", "cloudy sky"])
    assert segmenter.text.counts["encoded"] == before["encoded"], "names are embedded once, whatever their classes"
    assert again.classes == ["water", "cloudy sky"]


def test_what_fits_nothing_is_other(segmenter, regions, scene):
    """Of five classes, one that is there: the rest is theirs without the contrast class, and not with it."""
    there = present(scene)[0]
    others = ("red heart", "gravel", "pink ring", "sand", "night sky", "black arrow")
    absent = [name for name in others if name not in present(scene)][:4]
    truth = scene.labels == CLASSES.index(there)
    forced = regions.classify([there, *absent])
    assert (forced.labels < 5).all()
    result = regions.classify(Vocabulary([there, *absent], other=True))
    assert result.classes[-1] == "other"
    assert (result.labels == 5)[~truth].mean() > 0.95
    assert (result.labels == 0)[truth].mean() > 0.9
    _, segments = result.panoptic()
    assert {segment["category_id"] for segment in segments} <= {0}
    assert {one.class_index for one in result.instances()} <= set(range(5))
    assert tuple(result.draw(legend=False, opacity=1.0, labels=False)[~truth & (result.labels == 5)][0]) == (
        128,
        128,
        128,
    )


def test_the_contrast_class_leaves_out_what_means_the_same(segmenter):
    """A synonym of a class's name among the contrast names would take its pixels; names of one's own are kept."""
    lawn = Vocabulary(["lawn", "red disc"], other=True)
    names = segmenter.text.names(lawn)
    assert names[:2] == ("lawn", "red disc")
    assert "grass" not in names
    assert "red circle" not in names
    assert {"gravel", "blue circle", "person"} < set(names)
    assert segmenter.text.names(Vocabulary(["lawn"], other=["grass", "sand"])) == ("lawn", "grass", "sand")
    assert candidates(["water|sea", "sand"], ["Sea", "person"])[:2] == ("water", "sand")
    assert len(set(NOUNS)) == len(NOUNS) > 100


def example(scene, name):
    """An object or background of a scene, mirrored."""
    return {"image": scene.image[:, ::-1].copy(), "mask": scene.labels[:, ::-1] == CLASSES.index(name)}


def recoloured(scene, name):
    """An example that looks like a class and is not of it."""
    one = example(scene, name)
    return {**one, "image": np.ascontiguousarray(one["image"][..., [1, 2, 0]])}


def test_classes_from_example_images(segmenter, regions, scene):
    names = present(scene)
    shown = {f"thing {index}": [example(scene, name)] for index, name in enumerate(names)}
    elsewhere = render_scene(0, "test", 4)
    absent = {"gap": [example(elsewhere, next(name for name in present(elsewhere) if name not in names))]}
    every = regions.classify(Vocabulary.from_images({**shown, **absent}))
    every.classes[:] = [*names, "?"]
    assert agreement(every, scene) > 0.9
    beside = {f"thing {index}|{name}": [example(scene, name)] for index, name in enumerate(names)}
    mixed = Vocabulary([names[0], "pink ring", "black heart"], examples=dict(list(shown.items())[1:]), other=True)
    result = regions.classify(mixed)
    assert result.classes == [names[0], "pink ring", "black heart", *list(shown)[1:], "other"]
    result.classes[3:-1] = names[1:]
    assert agreement(result, scene) > 0.8, "images and names are compared on one scale"
    described = regions.classify(Vocabulary(["pink ring"], examples=beside))
    described.classes[1:] = names
    assert agreement(described, scene) > 0.9
    decoys = {f"decoy {index}": [one] for index, one in enumerate(recoloured(scene, name) for name in names)}
    assert agreement(regions.classify(Vocabulary(names, examples=decoys)), scene) > 0.9, "an image looks like images"
    row = segmenter.text.examples.rows(Vocabulary.from_images(shown), segmenter.text)[0]
    one = example(scene, names[0])
    np.testing.assert_allclose(row, segmenter.regions(one["image"], one["mask"][None]).embeddings[0], atol=1e-6)
    with pytest.raises(VocabularyError, match="'thing 0' is shown by images, which only an opened bundle"):
        TextEmbedder(segmenter.bundle, segmenter.engine).embed_names(Vocabulary.from_images(shown))
    brief = Vocabulary.from_images({"brief": shown["thing 0"]}, other=True)
    segmenter.embed_names(brief)
    pixels = weakref.ref(brief.examples[0][0])
    del brief
    gc.collect()
    assert pixels() is None, "embeddings are kept, but not the images"


def test_examples_in_a_file_with_masks_boxes_and_alpha(tmp_path: Path, scene):
    one = example(scene, present(scene)[0])
    pixels, mask = one["image"], one["mask"]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    Image.fromarray(np.dstack([pixels, mask.astype(np.uint8) * 255])).save(tmp_path / "alpha.png")
    images = [{"image": "a.png", "mask": "mask.png"}, "alpha.png", {"image": "a.png", "box": [1, 2, 30, 40]}]
    file = tmp_path / "classes.json"
    file.write_text(json.dumps([{"name": "dune", "images": images, "id": 4}, {"name": "red star", "id": 9}]))
    vocabulary = Vocabulary.of(f"@{file}")
    masked, alpha, boxed = vocabulary.examples[0]
    assert masked == alpha
    assert boxed.mask.sum() == 29 * 38
    np.testing.assert_array_equal(masked.mask, mask)
    assert vocabulary.categories.ids == (4, 9)
    assert vocabulary.spoken == ("red star",)
    for images, told in (
        (["nothing.png"], "no such image file"),
        ([{"picture": "a.png"}], "give image, and mask or box"),
        ([{"image": "a.png", "box": [5, 5, 5, 9]}], "but its mask is empty"),
        ([{"image": "a.png", "box": [1.5, 2, 3, 4]}], r"give \[x1, y1, x2, y2\]"),
        ([], "has no list of example images"),
    ):
        file.write_text(json.dumps([{"name": "dune", "images": images}]))
        with pytest.raises(VocabularyError, match=told):
            Vocabulary.of(f"@{file}")
    with pytest.raises(VocabularyError, match="but its mask has"):
        Vocabulary.from_images({"dune": [{"image": pixels, "mask": mask[1:]}]})
