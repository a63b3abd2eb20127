"""Every network golden through an exported bundle and the runtime, on both engines, within the parity contract."""

import numpy as np
import pytest

from tests import parity
from tests.bundles import bundle_for_case
from tests.golden import load_golden
from tests.reference_cases import BIG_CASES, SMALL_CASES
from vocabseg.benchmarks.speed.variants import Timeline
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels.geometry import padded_size
from vocabseg.runtime.segmenter.regions import Regions
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary

ENGINES = ("onnxruntime", "openvino")
CASES = [*SMALL_CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in BIG_CASES)]
# Text embeddings of unit length, through the 12 layers of the published text encoder.
TEXT_TOLERANCE = 5e-5
# With matting a crop follows the mask's probability, in which a difference of 1e-3 in a logit of the proposal network
# stands unrounded; the contract's 1e-4 holds from the same mask logits.
MATTING_TOLERANCE = 5e-4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_from_the_image(case, engine):
    golden, meta = load_golden(case)
    if len(meta["images"]) > 1:
        pytest.skip(f"{case} pads its images to a common size, which the runtime never does; see the test below")
    segmenter = Segmenter(open_bundle(bundle_for_case(case)), engine=engine, precision="float32")
    regions, crops = watched(segmenter, segmenter.propose, golden["image_0"])
    assert regions.padded_size == tuple(meta["padded"])
    resized = segmenter.kernels.resize_normalize(
        golden["image_0"], regions.image_size, regions.padded_size, (0, 0, 0), (1, 1, 1)
    )[1]
    np.testing.assert_array_equal(resized, golden["resized_0"].transpose(1, 2, 0))
    error = parity.check_mask_logits(golden, 0, regions.mask_logits)
    golden = parity.flippable(golden, 0, error)
    parity.check_close("query embeddings", regions.query_embeddings, golden["class_embed"][0], 1e-4)
    tolerance = MATTING_TOLERANCE if segmenter.bundle.manifest.region.matting else parity.CROP_TOLERANCE
    agreement, shift = check_second_stage(golden, meta, 0, segmenter, regions, crops, tolerance)
    print(f"{case} on {engine}: labels {agreement:.6f} where a flipped mask pixel cannot decide (margin > {shift:.3g})")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", SMALL_CASES)
def test_from_the_published_proposals(case, engine):
    """From the published mask logits no mask pixel flips, so the contract holds for every region and pixel."""
    golden, meta = load_golden(case)
    segmenter = Segmenter(open_bundle(bundle_for_case(case)), engine=engine, precision="float32")
    for index in range(len(meta["images"])):
        image = golden[f"image_{index}"]
        resized = np.ascontiguousarray(golden[f"resized_{index}"].transpose(1, 2, 0))
        padded = tuple(meta["padded"])
        assert len(meta["images"]) > 1 or padded == padded_size(*resized.shape[:2], 32)
        proposals = (golden["pred_masks"][index], golden["class_embed"][index])
        regions, crops = watched(
            segmenter, lambda given=(image, resized, *proposals, padded): segmenter.describe(*given)
        )
        np.testing.assert_array_equal(regions.areas, golden.get(f"area_{index}", regions.areas))
        steady = {**golden, f"near_{index}": np.zeros_like(golden[f"near_{index}"])}
        agreement, shift = check_second_stage(steady, meta, index, segmenter, regions, crops, parity.CROP_TOLERANCE)
        assert shift == 0
        print(f"{case}[{index}] on {engine}: labels {agreement:.6f}")


def watched(segmenter: Segmenter, work, *given):
    """What `work(*given)` gives, and the crops (V, 3, S, S) that were cut meanwhile."""
    timeline = segmenter.stages.observer = Timeline(keep=True)
    regions = work(*given)
    segmenter.stages.observer = None
    return regions, np.concatenate(timeline.kept["crops"]) if "crops" in timeline.kept else []


def check_second_stage(golden, meta, index, segmenter: Segmenter, regions: Regions, crops, crop_tolerance):
    """Everything behind the proposals; returns the share of equal labels, and how far flips can move scores."""
    vocabulary = Vocabulary(meta["classes"], meta["trainable_flag"])
    query_text, region_text = segmenter.text.query_matrix(vocabulary), segmenter.text.region_matrix(vocabulary)
    parity.check_close("text", query_text, golden["text_query"], TEXT_TOLERANCE)
    if "text_region" in golden:
        parity.check_close("region text", region_text, golden["text_region"][:-1], TEXT_TOLERANCE)
    every = np.arange(len(regions.valid))
    result = regions.classify(vocabulary)
    probabilities, voters = result.evidence.class_probabilities, regions.voters
    shift = 0.0
    if f"valid_{index}" in golden:
        boxes = np.zeros((len(regions.valid), 4))
        boxes[regions.valid] = regions.boxes
        parity.check_boxes(golden, index, boxes, regions.valid)
        parity.check_areas(golden, index, regions.areas)
        parity.check_crops(golden, index, crops, every[regions.valid], crop_tolerance)
        parity.check_embeddings(golden, index, regions.embeddings, every[regions.valid])
        shift = parity.flip_shift(golden, index, probabilities, voters)
    else:
        assert regions.embeddings is None
    parity.check_probabilities(golden, index, probabilities, voters)
    agreement = parity.check_labels(golden, index, result.labels, shift)
    check_masks_alone(golden, index, regions)
    # However many mask pixels flip, no more than a few of a hundred labels may follow them.
    parity.check_labels(golden, index, result.labels, share=0.95)
    if shift == 0:
        scores = result.class_scores()
        parity.check_close("class scores", scores[:, 3::8, 3::8], golden[f"scores_{index}"], 1e-3)
        mean = scores.mean(axis=(1, 2), dtype=np.float64)
        parity.check_close("mean scores", mean, golden[f"score_mean_{index}"], 3e-4)
    return agreement, shift


def check_masks_alone(golden, index, regions: Regions):
    """With the published class probabilities, masks and composition alone decide the labels, without allowance."""
    probabilities = np.ascontiguousarray(golden[f"class_prob_{index}"])
    if len(probabilities) == len(regions.mask_logits):
        parity.check_labels(golden, index, load_kernels().compose(regions.masks, probabilities)[0])
