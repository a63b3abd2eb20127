"""Panoptic quality against a literal reading of the definition, with sets of pixels instead of counts."""

from typing import Any

import numpy as np
import pytest

from vocabseg.benchmarks.accuracy.panoptic_quality import PanopticQuality
from vocabseg.benchmarks.datasets.dataset import PanopticSegment

Pixels = set[tuple[int, int]]


def pixels(ids: np.ndarray, value: int) -> Pixels:
    return set(zip(*(axis.tolist() for axis in np.nonzero(ids == value)), strict=True))


def by_definition(
    predicted: np.ndarray, segments: list[dict[str, Any]], truth: np.ndarray, known: list[PanopticSegment], classes: int
) -> list[list[float]]:
    """[sum of IoUs, TP, FP, FN] per class: arXiv 1801.00868, with void and crowds by its section 4.2."""
    sums = [[0.0, 0, 0, 0] for _ in range(classes)]
    everything = set(np.ndindex(truth.shape))
    void = everything - set().union(*(pixels(truth, segment.id) for segment in known))
    matched = set()
    for segment in segments:
        mine, category = pixels(predicted, segment["id"]), segment["category_id"]
        if not mine:
            continue
        for other in known:
            yours = pixels(truth, other.id)
            if other.crowd or other.class_index != category:
                continue
            iou = len(mine & yours) / len((mine - void) | yours)
            if iou > 0.5:
                sums[category][0] += iou
                sums[category][1] += 1
                matched.add(other.id)
                break
        else:
            crowds = set().union(*(pixels(truth, o.id) for o in known if o.crowd and o.class_index == category))
            if len(mine & (void | crowds)) / len(mine) <= 0.5:
                sums[category][2] += 1
    for other in known:
        if not other.crowd and other.id not in matched:
            sums[other.class_index][3] += 1
    return sums


def random_case(seed: int) -> tuple[np.ndarray, list[dict[str, Any]], np.ndarray, list[PanopticSegment]]:
    """A truth of rectangles on void, and a prediction that is the truth shifted, relabelled and partly lost."""
    random = np.random.default_rng(seed)
    truth = np.zeros((18, 22), np.int32)
    known = []
    for number in range(int(random.integers(1, 7))):
        top, left = random.integers(0, 14), random.integers(0, 18)
        identity = 1000 + 37 * number
        truth[top : top + random.integers(3, 9), left : left + random.integers(3, 9)] = identity
        known.append(PanopticSegment(identity, int(random.integers(0, 4)), bool(random.random() < 0.25)))
    known = [segment for segment in known if (truth == segment.id).any()]
    shifted = np.roll(truth, random.integers(-1, 2, 2), (0, 1))
    predicted = np.zeros_like(truth)
    segments = []
    for number, segment in enumerate(known, start=1):
        if random.random() < 0.85:
            predicted[shifted == segment.id] = number
            category = segment.class_index if random.random() < 0.8 else int(random.integers(0, 4))
            segments.append({"id": number, "category_id": category, "isthing": True})
    return predicted, segments, truth, known


def test_the_definition() -> None:
    total = np.zeros((4, 4))
    quality, half = PanopticQuality(4), PanopticQuality(4)
    for seed in range(60):
        case = random_case(seed)
        expected = np.array(by_definition(*case, 4))
        alone = PanopticQuality(4)
        alone.update(*case)
        found = np.stack([alone.iou, alone.matched, alone.false, alone.missed], 1)
        np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=f"seed {seed}")
        (quality if seed % 2 else half).update(*case)
        total += expected
    quality.merge(PanopticQuality.from_json(half.to_json()))
    assert total[:, 1:].min() > 0, "the cases should hold matches, false and missed segments of every class"
    metrics = quality.metrics(things={0, 2})
    pq = 100 * total[:, 0] / (total[:, 1] + total[:, 2] / 2 + total[:, 3] / 2)
    assert metrics.all.pq == pytest.approx(pq.mean())
    assert metrics.things.pq == pytest.approx(pq[[0, 2]].mean())
    assert metrics.stuff.pq == pytest.approx(pq[[1, 3]].mean())
    assert metrics.pq == pytest.approx(list(pq))
    sq, rq = total[:, 0] / total[:, 1], total[:, 1] / (total[:, 1] + total[:, 2] / 2 + total[:, 3] / 2)
    assert metrics.all.sq == pytest.approx(100 * sq.mean())
    assert metrics.all.rq == pytest.approx(100 * rq.mean())


def test_a_hand_made_case() -> None:
    # One row: class 0 matched with IoU 3/4, class 1 missed, a false class 1, two pixels of void.
    truth = np.array([[1, 1, 1, 2, 2, 2, 0, 0]])
    predicted = np.array([[1, 1, 1, 1, 0, 5, 5, 5]])
    quality = PanopticQuality(3)
    known = [PanopticSegment(1, 0), PanopticSegment(2, 1)]
    quality.update(predicted, [{"id": 1, "category_id": 0}, {"id": 5, "category_id": 1}], truth, known)
    metrics = quality.metrics({0})
    assert metrics.pq == [pytest.approx(75), 0, None]
    assert quality.false.tolist() == [0, 0, 0], "two thirds of the false segment lie in void"
    assert quality.missed.tolist() == [0, 1, 0]
    assert metrics.all.pq == pytest.approx(37.5)
    assert metrics.all.classes == 2


def test_exact_prediction_is_perfect() -> None:
    _, _, truth, known = random_case(3)
    segments = [{"id": segment.id, "category_id": segment.class_index} for segment in known if not segment.crowd]
    predicted = np.where(np.isin(truth, [entry["id"] for entry in segments]), truth, 0)
    quality = PanopticQuality(4)
    quality.update(predicted, segments, truth, known)
    assert quality.metrics(set()).all.pq == pytest.approx(100)
    with pytest.raises(ValueError, match="must be equal"):
        quality.update(predicted[:5], segments, truth, known)
