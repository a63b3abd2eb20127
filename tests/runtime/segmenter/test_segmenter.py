"""The Segmenter beyond parity: asking again, masks of one's own, many images, what is refused."""

import threading
from pathlib import Path

import numpy as np
import pytest

import vocabseg
from tests.bundles import bundle_for_case
from tests.golden import load_golden
from vocabseg.benchmarks.scenes.world import render_scene
from vocabseg.runtime.errors import BundleError, ConfigurationError, EngineError, ImageError, VocabularyError

NAMES = ["person", "tree", "flower", "water"]
CASE = "c_r50_tiny16_vild"


@pytest.fixture(scope="module")
def segmenter():
    return vocabseg.load(bundle_for_case(CASE), engine="onnxruntime")


@pytest.fixture(scope="module")
def image():
    return load_golden(CASE)[0]["image_0"]


@pytest.fixture(scope="module")
def regions(segmenter, image):
    return segmenter.propose(image)


def count_runs(segmenter, monkeypatch):
    """The names of the graphs that run from now on."""
    ran = []
    for name in ("proposal", "image_encoder", "text_encoder"):
        engine = segmenter.engine(name)
        original = engine.run
        monkeypatch.setattr(engine, "run", lambda inputs, n=name, run=original: (ran.append(n), run(inputs))[1])
    return ran


def test_one_call_equals_propose_and_classify(segmenter, image, regions):
    result = segmenter(image, NAMES)
    again = regions.classify(NAMES)
    np.testing.assert_array_equal(result.labels, again.labels)
    np.testing.assert_array_equal(result.scores, again.scores)
    assert result.labels.shape == image.shape[:2]
    assert result.labels.dtype == np.int32
    assert result.scores.dtype == np.float32
    assert result.classes == NAMES


def test_asking_again_runs_no_network_but_for_new_names(segmenter, regions, monkeypatch):
    regions.classify(NAMES)
    ran = count_runs(segmenter, monkeypatch)
    regions.classify(NAMES[::-1])
    assert ran == []
    regions.classify([*NAMES, "a name never asked before"])
    assert set(ran) == {"text_encoder"}


def test_the_order_of_names_only_renumbers(regions):
    forward = regions.classify(NAMES)
    backward = regions.classify(NAMES[::-1])
    agreement = np.mean(forward.labels == len(NAMES) - 1 - backward.labels)
    assert agreement > 0.9999  # equal scores may fall either way
    np.testing.assert_allclose(forward.scores, backward.scores, rtol=1e-6, atol=1e-6)


def test_scores_are_the_winning_class_scores(regions):
    result = regions.classify(NAMES)
    scores = result.class_scores()
    assert scores.shape == (len(NAMES), *result.labels.shape)
    np.testing.assert_allclose(scores.max(axis=0), result.scores, atol=2e-6)
    picked = np.take_along_axis(scores, result.labels[None].astype(np.int64), axis=0)[0]
    np.testing.assert_allclose(picked, result.scores, atol=2e-6)


def test_seen_classes_change_the_ensemble(regions):
    unseen = regions.probabilities(vocabseg.Vocabulary(NAMES))[0]
    seen = regions.probabilities(vocabseg.Vocabulary(NAMES, seen=["tree"]))[0]
    assert np.abs(unseen[:, 1] - seen[:, 1]).max() > 1e-3
    np.testing.assert_array_equal(np.delete(unseen, 1, axis=1), np.delete(seen, 1, axis=1))


def test_templates_override_the_bundles(regions):
    usual = regions.probabilities(vocabseg.Vocabulary(NAMES))[0]
    other = regions.probabilities(vocabseg.Vocabulary(NAMES, templates=["a drawing of a {}."]))[0]
    assert np.abs(usual - other).max() > 1e-4


def test_many_images_equal_one_call_each(segmenter, image):
    images = [image, image[:, ::-1], image[20:180, 30:200]]
    for single, many in zip(images, segmenter.segment_many(images, NAMES), strict=True):
        np.testing.assert_array_equal(segmenter(single, NAMES).labels, many.labels)


def test_an_image_that_cannot_be_used_is_told_when_its_turn_comes(segmenter, image, tmp_path):
    results = segmenter.segment_many([image, tmp_path / "none.png", image], NAMES)
    np.testing.assert_array_equal(next(results).labels, segmenter(image, NAMES).labels)
    with pytest.raises(ImageError, match=r"none\.png"):
        next(results)


def test_many_images_are_read_one_ahead_and_no_further(segmenter, image):
    taken = []

    def images():
        for number in range(5):
            taken.append(number)
            yield image[: 100 + number]

    results = segmenter.segment_many(images(), NAMES)
    next(results)
    assert taken == [0, 1]
    results.close()
    assert taken == [0, 1]


@pytest.fixture
def small(monkeypatch):
    """The demo model with three threads: images are segmented side by side."""
    monkeypatch.setenv("VOCABSEG_THREADS", "3")
    return vocabseg.load(engine="onnxruntime")


def scenes(count):
    return [render_scene(0, "test", number, size=(128, 160)).image for number in range(count)]


def test_many_images_of_a_small_model_run_side_by_side(small, monkeypatch):
    names, images = ["red circle", "blue square", "grass"], scenes(7)
    expected = [small(image, names) for image in images]
    ran = set()
    engine = small.engine("image_encoder")
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda inputs: (ran.add(threading.current_thread().name), run(inputs))[1])
    found = list(small.segment_many(images, names))
    assert [result.labels.shape for result in found] == [(128, 160)] * 7
    for one, alone in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.labels, alone.labels)
        np.testing.assert_array_equal(one.scores, alone.scores)
    assert len(ran) > 1
    assert threading.current_thread().name not in ran


def test_small_models_keep_a_few_images_in_memory_and_tell_errors_in_turn(small, tmp_path):
    taken = []

    def images():
        for number, scene in enumerate(scenes(6)):
            taken.append(number)
            yield tmp_path / "none.png" if number == 1 else scene
        raise OSError("the camera is gone")

    results = small.segment_many(images(), NAMES)
    next(results)
    assert taken == [0, 1, 2, 3]
    with pytest.raises(ImageError, match=r"none\.png"):
        next(results)
    good = small.segment_many((image for image in images() if not isinstance(image, Path)), NAMES)
    assert [next(good).labels.shape for _ in range(5)] == [(128, 160)] * 5
    with pytest.raises(OSError, match="camera"):
        next(good)


@pytest.mark.parametrize("engine", ["one ahead", "side by side"])
def test_images_that_cannot_be_used_do_not_end_the_others_on_request(request, segmenter, image, tmp_path, engine):
    used = segmenter if engine == "one ahead" else request.getfixturevalue("small")
    images = [tmp_path / "first.png", image, tmp_path / "second.png", image[:100], image[:90], image[:80, :0]]
    expected = [used(images[place], NAMES).labels for place in (1, 3, 4)]
    found = list(used.segment_many(images, NAMES, on_error="yield"))
    assert [type(outcome).__name__ for outcome in found] == [
        "ImageError", "Result", "ImageError", "Result", "Result", "ImageError"
    ]  # fmt: skip
    assert "first.png" in str(found[0])
    assert "second.png" in str(found[2])
    kept = list(used.segment_many(iter(images), NAMES, on_error="skip"))
    for results in ([found[place] for place in (1, 3, 4)], kept):
        for result, labels in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result.labels, labels)
    with pytest.raises(ImageError, match=r"first\.png"):
        next(used.segment_many(images, NAMES, on_error="raise"))
    with pytest.raises(ConfigurationError, match="'ignore': use one of raise, skip, yield"):
        next(used.segment_many(images, NAMES, on_error="ignore"))


def test_an_error_that_is_not_the_images_is_raised_however(segmenter, image, monkeypatch):
    def broken(inputs):
        raise EngineError("the engine is gone")

    monkeypatch.setattr(segmenter.engine("proposal"), "run", broken)
    with pytest.raises(EngineError, match="is gone"):
        list(segmenter.segment_many([image], NAMES, on_error="skip"))


def test_regions_describe_themselves(regions, image):
    valid = int(regions.valid.sum())
    assert regions.boxes.shape == (valid, 4)
    assert regions.embeddings.shape[0] == valid
    np.testing.assert_allclose(np.linalg.norm(regions.embeddings, axis=1), 1, atol=1e-5)
    assert regions.mask_logits.shape[0] == len(regions.valid) == len(regions.query_embeddings)
    assert (regions.areas[regions.valid] > 0).all()
    assert (regions.areas[~regions.valid] == 0).all()
    height, width = image.shape[:2]
    assert (regions.image_boxes[:, [2, 3]] <= np.array([width, height]) + 1e-3).all()


def test_masks_of_ones_own(segmenter, image):
    height, width = image.shape[:2]
    masks = np.zeros((3, height, width), bool)
    masks[0, : height // 2] = True
    masks[1, height // 2 :, : width // 2] = True
    regions = segmenter.regions(image, masks)
    result = regions.classify(NAMES)
    np.testing.assert_array_equal(regions.valid, [True, True, False])
    np.testing.assert_array_equal(regions.boxes, [[0, 0, width, height // 2], [0, height // 2, width // 2, height]])
    np.testing.assert_array_equal(regions.areas, masks.sum(axis=(1, 2)))
    np.testing.assert_array_equal(result.labels >= 0, masks.any(axis=0))
    for mask in masks[:2]:
        assert len(np.unique(result.labels[mask])) == 1
    probabilities, indices, _ = regions.probabilities(vocabseg.Vocabulary(NAMES))
    np.testing.assert_array_equal(indices, [0, 1])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert result.labels[0, 0] == probabilities[0].argmax()


def test_soft_masks_of_ones_own(segmenter, image):
    soft = np.zeros((1, *image.shape[:2]))
    soft[0, 10:60, 20:90] = 0.9
    soft[0, 60:70, 20:90] = 0.2
    regions = segmenter.regions(image, soft)
    np.testing.assert_array_equal(regions.boxes, [[20, 10, 90, 60]])
    probability = regions.classify(["one"]).class_scores()[0]
    np.testing.assert_allclose(probability[5:65, 30], soft[0, 5:65, 30], atol=1e-5)


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        (np.zeros((2, 5, 5), bool), "size of the image"),
        (np.zeros((240, 320), bool), "size of the image"),
        (np.zeros((1, 240, 320), np.int64), "int64"),
        (np.full((1, 240, 320), 1.5), "1.5"),
        (np.full((1, 240, 320), np.nan), "nan"),
    ],
)
def test_masks_that_do_not_fit_are_refused(segmenter, image, masks, told):
    with pytest.raises(ImageError, match=told):
        segmenter.regions(image, masks)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (600, 2), (3, 3)])
def test_extreme_shapes_work(segmenter, shape):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*shape, 3), np.uint8)
    assert segmenter(picture, ["a", "b"]).labels.shape == shape


def test_ten_thousand_names(segmenter, regions):
    text = segmenter.text
    rng = np.random.default_rng(0)
    names = [f"thing {index}" for index in range(10_000)]
    fake = dict(zip(names, rng.standard_normal((10_000, 64)).astype(np.float32), strict=True))
    original = text.embed
    text.embed = lambda asked, *rest: np.stack([fake[name] / np.linalg.norm(fake[name]) for name in asked])
    try:
        result = regions.classify(names)
    finally:
        text.embed = original
    assert result.labels.max() > 100
    assert result.labels.max() < 10_000


def test_names_that_cannot_be_used(segmenter, image):
    for names, told in [([], "empty"), (["cat", "cat"], "cat"), (["  "], "empty"), (["word " * 200], "tokens")]:
        with pytest.raises(VocabularyError, match=told):
            segmenter(image, names)


def test_a_bundle_without_a_vocabulary_asks_for_names(segmenter, image):
    with pytest.raises(VocabularyError, match="give class names"):
        segmenter(image)


def test_loading_tells_what_is_wrong(tmp_path):
    bundle = bundle_for_case(CASE)
    with pytest.raises(BundleError, match="no such folder"):
        vocabseg.load(tmp_path / "none")
    with pytest.raises(EngineError, match="unknown engine 'tensorflow'"):
        vocabseg.load(bundle, engine="tensorflow")
    with pytest.raises(EngineError, match="tpu"):
        vocabseg.load(bundle, device="tpu")
    with pytest.raises(EngineError, match="float32"):
        vocabseg.load(bundle, engine="onnxruntime", precision="bfloat16")
