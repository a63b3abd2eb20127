"""Regions that share a crop, and masks that get none: on the demo model and on masks of one's own."""

import numpy as np
import pytest

from tests.golden import REPOSITORY
from tests.prompted import prompted_bundle
from vocabseg.runtime.bundle.settings import open_adjusted
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
