"""Regions that share a crop, and masks that get none: on the demo model and on masks of one's own."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.fake_driver.machine import Machine
from tests.golden import REPOSITORY
from tests.prompted import prompted_bundle
from tests.runtime.segmenter.test_cuda_stages import assert_same, emulated, emulated_kernels
from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.bundle.manifest import write_manifest
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.segmenter.segmenter import Segmenter

NAMES = ["red circle", "grass", "cloudy sky", "water", "black arrow"]


def budgeted(*settings: str, bundle=None) -> Segmenter:
    return Segmenter(open_adjusted(bundle, [f"region.{one}" for one in settings]), "cpu", "onnxruntime")


@pytest.fixture(scope="module")
def image():
    return load_image(REPOSITORY / "examples" / "scene.png")[:240, :320].copy()


@pytest.fixture(scope="module")
def published(image):
    return budgeted().propose(image)


def masks_of(regions) -> np.ndarray:
    return np.flatnonzero(regions.valid)


def test_without_a_budget_every_region_has_its_own_crop(published):
    assert published.crops == len(published.boxes) > 10
    assert published.encoded_as.tolist() == list(range(len(published.boxes)))
    assert "encoded_as" not in published.arrays


def test_shared_rows_are_those_of_the_leader(published, image, monkeypatch):
    segmenter, encoded = budgeted("share_iou=0.7"), []
    run = segmenter.engine("image_encoder").run
    monkeypatch.setattr(
        segmenter.engine("image_encoder"), "run", lambda inputs: (encoded.append(len(inputs["crops"])), run(inputs))[1]
    )
    regions = segmenter.propose(image)
    np.testing.assert_array_equal(regions.boxes, published.boxes)
    np.testing.assert_array_equal(regions.areas, published.areas)
    assert sum(encoded) == regions.crops < published.crops
    np.testing.assert_array_equal(regions.embeddings, regions.embeddings[regions.encoded_as])
    np.testing.assert_allclose(regions.embeddings, published.embeddings[regions.encoded_as], atol=1e-5)
    result = regions.classify(NAMES)
    opinions = result.evidence.opinions
    sharing = np.flatnonzero(opinions.crops != opinions.numbers)
    sharing = sharing[opinions.crops[sharing] >= 0]
    assert len(sharing) == len(regions.boxes) - regions.crops
    for row in sharing.tolist():
        np.testing.assert_array_equal(opinions.clip[row], opinions.clip[opinions.crops[row]])
    told = {vote.mask: vote.shares for vote in result.explain(100, 60).votes}
    assert {mask for mask, shares in told.items() if shares is not None} == set(sharing.tolist())
    assert all(told[mask] == opinions.crops[mask] for mask in sharing.tolist())


def test_dropped_masks_vote_as_empty_ones(published, image):
    regions = budgeted("max_regions=6").propose(image)
    assert regions.crops == len(regions.boxes) == 6
    dropped = np.flatnonzero(regions.areas == -1)
    assert len(dropped) == published.valid.sum() - 6
    evidence, usual = (found.classify(NAMES).evidence for found in (regions, published))
    np.testing.assert_allclose(  # their queries alone, by the published rule: all names count as unseen
        evidence.class_probabilities[dropped],
        evidence.opinions.query[dropped] ** (1 - regions.ensemble.weight),
        rtol=1e-5,
    )
    kept = masks_of(regions)
    np.testing.assert_allclose(evidence.class_probabilities[kept], usual.class_probabilities[kept], atol=1e-5)
    vote = next(vote for vote in regions.classify(NAMES).explain(5, 5).votes if vote.mask == dropped[0])
    assert (vote.area, vote.box, vote.clip, vote.shares) == (-1, None, (), None)


def test_objectness_orders_and_bounds_the_regions(published, image):
    segmenter = budgeted("min_objectness=0.05")
    objects = segmenter.text.object_matrix()
    queries = published.query_embeddings
    logits = published.ensemble.temperature * (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ objects.T
    likely = np.exp(logits - logits.max(1, keepdims=True))
    objectness = 1 - likely[:, -1] / likely.sum(1)
    assert len(objects) == len(segmenter.bundle.manifest.vocabulary) + 1
    wanted = masks_of(published)[objectness[masks_of(published)] >= 0.05]
    assert 0 < len(wanted) < len(published.boxes)
    assert masks_of(segmenter.propose(image)).tolist() == wanted.tolist()
    best = masks_of(budgeted("max_regions=3").propose(image))
    order = sorted(masks_of(published), key=lambda mask: -objectness[mask])
    assert sorted(order[:3]) == best.tolist()
    alone = masks_of(budgeted("min_objectness=1").propose(image))
    assert alone.tolist() == order[:1]


def test_names_asked_for_do_not_change_the_regions(image):
    segmenter = budgeted("min_objectness=0.3", "share_iou=0.8")
    regions = segmenter.propose(image)
    first, second = segmenter(image, ["grass"]), segmenter(image, NAMES)
    assert first.evidence.opinions.crops.tolist() == second.evidence.opinions.crops.tolist()
    assert regions.crops < len(regions.boxes) < 20


def test_many_images_are_segmented_as_one(image):
    segmenter = budgeted("share_iou=0.8", "max_regions=8")
    images = [image, image[:, ::-1].copy(), image[::2, ::2].copy()]
    for found, one in zip(segmenter.segment_many(images, NAMES), images, strict=True):
        alone = segmenter(one, NAMES)
        np.testing.assert_array_equal(found.labels, alone.labels)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)


def test_masks_of_ones_own_are_ordered_by_their_confidence(image):
    masks = np.zeros((4, 240, 320), np.float32)
    masks[0, 20:100, 20:100] = 0.6
    masks[1, 20:100, 20:99] = 0.9
    masks[2, 120:200, 50:300] = 0.8
    masks[3, 20:98, 20:100] = 0.7
    regions = budgeted("share_iou=0.95").regions(image, masks)
    assert regions.encoded_as.tolist() == [1, 1, 2, 1]
    np.testing.assert_array_equal(regions.embeddings[0], regions.embeddings[3])
    few = budgeted("max_regions=1").regions(image, masks)
    assert masks_of(few).tolist() == few.voters.tolist() == [1]
    labels = few.classify(NAMES).labels
    assert (labels[150, 100], labels[50, 50] >= 0) == (-1, True)  # a dropped mask has no vote: CLIP alone decides


def test_regions_that_share_a_crop_share_its_patch_mask(image, tmp_path, monkeypatch):
    segmenter = budgeted("share_iou=0.7", bundle=prompted_bundle(tmp_path / "bundle", 4))
    assert segmenter.bundle.manifest.region.patch_grid
    given, run = [], segmenter.engine("image_encoder").run
    monkeypatch.setattr(segmenter.engine("image_encoder"), "run", lambda inputs: (given.append(inputs), run(inputs))[1])
    regions = segmenter.propose(image)
    assert sum(len(each["patch_mask"]) for each in given) == sum(len(each["crops"]) for each in given) == regions.crops
    assert regions.crops < len(regions.boxes)
    np.testing.assert_array_equal(regions.embeddings, regions.embeddings[regions.encoded_as])


def budgeted_bundle(folder, *settings):
    """A copy of the demo model with a budget in its manifest."""
    shutil.copytree(demo_folder(), folder)
    write_manifest(open_adjusted(None, [f"region.{one}" for one in settings]).manifest, folder)
    return folder


@pytest.mark.parametrize(
    "settings", [["share_iou=0.8", "min_objectness=0.01"], ["max_regions=7", "matting=true", "share_iou=0.7"]]
)
def test_on_a_gpu_as_on_the_host(image, tmp_path, settings):
    bundle = budgeted_bundle(tmp_path / "bundle", *settings)
    host = budgeted(*settings)
    images = [image, image[:, ::-1], image[20:180, 30:200], image[::2, ::2]]
    expected = [host.propose(one) for one in images]
    host.embed_names(host.vocabulary(NAMES))
    host.text.object_matrix()
    with emulated(bundle, Machine(seed=2), text=host.text) as segmenter:
        for one, wanted in zip(images, expected, strict=True):
            for _ in range(2):  # the second is replayed
                found = segmenter.propose(one)
                np.testing.assert_array_equal(found.areas, wanted.areas)
                np.testing.assert_array_equal(found.boxes, wanted.boxes)
                np.testing.assert_array_equal(found.encoded_as, wanted.encoded_as)
                np.testing.assert_allclose(found.embeddings, wanted.embeddings, atol=1e-4)
                assert found.crops == wanted.crops < len(wanted.boxes) + 1
                assert_same(found.classify(NAMES), wanted.classify(NAMES))
        encoder = segmenter.graphs["image_encoder"]
        encoder.batches.clear()
        for found, wanted in zip(segmenter.segment_many(images, NAMES), expected, strict=True):
            assert_same(found, wanted.classify(NAMES))
            assert found.evidence.opinions.crops.tolist() == wanted.classify(NAMES).evidence.opinions.crops.tolist()
        assert 0 <= sum(encoder.batches) - sum(regions.crops for regions in expected) < 8 * len(encoder.batches)


def test_names_are_never_encoded_while_a_gpu_is_locked(image, tmp_path, monkeypatch):
    bundle = budgeted_bundle(tmp_path / "bundle", "max_regions=5")
    locked = []
    with emulated(bundle, Machine()) as segmenter:
        encode = segmenter.text.object_matrix

        def watched():
            with ThreadPoolExecutor(1) as other:
                free = other.submit(segmenter.stages.lock.acquire, blocking=False).result()
                if free:
                    other.submit(segmenter.stages.lock.release).result()
            locked.append((not free, len(segmenter.text._memory)))
            return encode()

        monkeypatch.setattr(segmenter.text, "object_matrix", watched)
        segmenter.propose(image[:96, :128])
    assert locked[0] == (False, 0)  # the first time, which runs the text encoder, while others may use the GPU
    assert all(known for _, known in locked[1:])


def test_the_kernels_own_source_and_masks_of_ones_own(image, tmp_path):
    bundle = budgeted_bundle(tmp_path / "bundle", "share_iou=0.7", "max_regions=9")
    host = budgeted("share_iou=0.7", "max_regions=9")
    host.embed_names(host.vocabulary(NAMES))
    host.text.object_matrix()
    small = image[:96, :128]
    masks = np.zeros((3, 96, 128), np.float32)
    masks[0, 10:60, 20:90], masks[1, 10:60, 20:89], masks[2, 50:90, 5:120] = 0.7, 0.9, 0.6
    with emulated_kernels(bundle, Machine(seed=1), text=host.text) as segmenter:
        for ask in (lambda one: one.propose(small), lambda one: one.regions(small, masks)):
            found, wanted = ask(segmenter), ask(host)
            np.testing.assert_array_equal(found.areas, wanted.areas)
            np.testing.assert_array_equal(found.encoded_as, wanted.encoded_as)
            np.testing.assert_allclose(found.embeddings, wanted.embeddings, atol=1e-4)
            assert found.crops < len(found.boxes)
            assert_same(found.classify(NAMES), wanted.classify(NAMES))


def test_too_many_masks_for_a_gpu_to_compare(image, tmp_path):
    bundle = budgeted_bundle(tmp_path / "bundle", "share_iou=0.9")
    told = pytest.raises(EngineError, match="compares at most 4096 masks with each other on a GPU, not 4097")
    with emulated(bundle, Machine()) as segmenter, told:
        segmenter.regions(image[:4, :4], np.zeros((4097, 4, 4), bool))
