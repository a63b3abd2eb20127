"""Why a pixel has its label: the votes add up to the scores, and the opinions to the class probabilities."""

import json
import pickle

import numpy as np
import pytest

import vocabseg
from tests.golden import REPOSITORY
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.errors import ImageError, VocabsegError, VocabularyError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.segmenter import Segmenter

NAMES = ["red circle", "grass", "cloudy sky", "water", "black arrow"]
PIXELS = [(0, 0), (319, 239), (101, 57), (250, 130)]
SEEN = vocabseg.Vocabulary(NAMES, seen=["grass", "water"])


@pytest.fixture(scope="module")
def image():
    return load_image(REPOSITORY / "examples" / "scene.png")[:240, :320].copy()


@pytest.fixture(scope="module")
def segmenter():
    # A threshold that leaves some masks empty: they vote without a crop.
    return Segmenter(open_adjusted(None, ["region.mask_threshold=0.9"]), "cpu", "onnxruntime")


def assert_adds_up(result: Result) -> None:
    """At some pixels, the votes for each class add up to its score, and the opinions make the probabilities."""
    scores, evidence = result.class_scores(), result.evidence
    assert evidence is not None
    opinions = evidence.opinions
    assert opinions is not None
    query = 1 if opinions.query is None else opinions.query
    clip = 1 if opinions.clip is None else np.nan_to_num(opinions.clip, nan=1)
    made = query**opinions.query_power * clip ** (1 - opinions.query_power)
    np.testing.assert_allclose(made, evidence.class_probabilities, rtol=1e-3, atol=1e-6)
    for x, y in PIXELS:
        for index, name in enumerate(result.classes):
            found = result.explain(x, y, name)
            assert sum(vote.votes for vote in found.votes) == pytest.approx(scores[index, y, x], abs=1e-6)
            assert found.explained.value == pytest.approx(scores[index, y, x], abs=1e-6)
        own = result.explain(x, y)
        assert own.label == (None if result.labels[y, x] < 0 else result.classes[result.labels[y, x]])
        assert [rating.value for rating in own.scores] == sorted((r.value for r in own.scores), reverse=True)
        assert [vote.votes for vote in own.votes] == sorted((vote.votes for vote in own.votes), reverse=True)


def test_votes_add_up_to_the_score(segmenter, image):
    regions = segmenter.propose(image)
    assert 0 < regions.valid.sum() < len(regions.valid)
    result = regions.classify(SEEN)
    assert_adds_up(result)
    found = result.explain(*PIXELS[2])
    assert found.scores[0].name == found.explained.name == found.label
    assert {rating.name: rating.seen for rating in found.scores} == {name: name in ("grass", "water") for name in NAMES}
    weight = segmenter.bundle.manifest.ensemble.weight
    powers = [result.explain(5, 5, name).query_power for name in ("grass", "red circle")]
    assert powers == pytest.approx([weight, 1 - weight])
    rows = np.cumsum(regions.valid) - 1
    places = sorted(vote.mask for vote in found.votes)
    assert places == list(range(len(regions.valid)))
    for vote in found.votes:
        assert len(vote.query) == len(vote.combined) == 5
        if not regions.valid[vote.mask]:
            assert (vote.box, vote.area, vote.clip) == (None, 0, ())
            continue
        np.testing.assert_allclose(vote.box, regions.image_boxes[rows[vote.mask]])
        assert 0 < vote.area <= (vote.box[2] - vote.box[0]) * (vote.box[3] - vote.box[1]) + 1
        assert vote.clip[0].value == max(rating.value for rating in vote.clip)
        every = sum(rating.value for rating in vote.query) + vote.no_object
        assert every == pytest.approx(1, abs=1e-5)  # all five classes are listed
        assert sum(rating.value for rating in vote.clip) == pytest.approx(1, abs=1e-5)
    assert pickle.loads(pickle.dumps(result)).explain(*PIXELS[2]) == found
    content = json.loads(json.dumps(found.to_json(2)))
    assert len(content["votes"]) == 2
    assert content["others"]["masks"] == len(found.votes) - 2
    total = sum(vote["votes"] for vote in content["votes"]) + content["others"]["votes"]
    assert total == pytest.approx(found.explained.value, abs=1e-6)
    assert found.to_json()["others"] == {"masks": 0, "votes": 0}


@pytest.mark.parametrize("settings", [["ensemble.enabled=false"], ["ensemble.weight=0"]])
def test_votes_add_up_whoever_votes(image, settings):
    result = Segmenter(open_adjusted(None, settings), "cpu", "onnxruntime")(image, SEEN)
    assert_adds_up(result)
    one = result.explain(*PIXELS[0]).votes[0]
    if "false" in settings[0]:
        assert (one.clip, one.query) == ((), one.combined)
    elif settings[0].endswith("=0"):
        assert one.combined == one.clip != one.query


def test_masks_of_ones_own_have_no_query(segmenter, image):
    masks = np.zeros((3, *image.shape[:2]), np.float32)
    masks[0, :100, :150], masks[2, 50:, :] = 1, 0.75
    result = segmenter.regions(image, masks).classify(SEEN)
    assert_adds_up(result)
    votes = result.explain(*PIXELS[2]).votes
    # The empty mask has no vote, and the threshold of 0.9 makes the faint one empty.
    assert [(vote.mask, vote.no_object, vote.query) for vote in votes] == [(0, None, ())]
    assert (votes[0].box, votes[0].area) == ((0, 0, 150, 100), 15000)
    nothing = result.explain(300, 20)
    assert (nothing.label, nothing.votes[0].weight) == (None, pytest.approx(0, abs=1e-6))


def test_what_cannot_be_explained(segmenter, image):
    result = segmenter(image, NAMES)
    for x, y in ((320, 0), (0, 240), (-1, 5)):
        with pytest.raises(ImageError, match=f"{x},{y} is outside the image of 320 x 240 pixels"):
            result.explain(x, y)
    with pytest.raises(ImageError, match=r"the pixel 1\.5,2 is none: give its column and row as whole numbers"):
        result.explain(1.5, 2)
    assert json.dumps(result.explain(np.int64(1), np.int64(2)).to_json()) == json.dumps(result.explain(1, 2).to_json())
    with pytest.raises(VocabularyError, match="'cow'"):
        result.explain(0, 0, "cow")
    with pytest.raises(VocabsegError, match="only labels and scores"):
        Result(result.labels, result.scores, NAMES).explain(0, 0)
