"""OVSeg's goldens through exported bundles: from the published proposals on every engine, from the image when slow."""

from contextlib import nullcontext

import numpy as np
import pytest

from tests import parity
from tests.bundles import bundle_for_case
from tests.export.model.small_models import small_proposal
from tests.golden import load_golden
from tests.reference_cases import OVSEG_CASES, SLOW_OVSEG_CASES
from tests.runtime.segmenter.test_cuda_stages import emulated_kernels
from tests.runtime.segmenter.test_goldens import check_second_stage
from vocabseg.benchmarks.speed.variants import Timeline
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary


def any_proposals():
    """In the place of the proposal network, whose output the goldens hold."""
    return small_proposal(queries=100, embedding=64)


def opened(bundle, engine):
    if engine == "emulated GPU":
        return emulated_kernels(bundle)
    return nullcontext(Segmenter(open_bundle(bundle), engine=engine, precision="float32"))


def check_from_proposals(bundle, case, engine):
    golden, meta = load_golden(case)
    resized = np.ascontiguousarray(golden["resized_0"].transpose(1, 2, 0))
    given = golden["image_0"], resized, golden["pred_masks"][0], golden["class_embed"][0], tuple(meta["padded"])
    golden = {**golden, "near_0": np.zeros_like(golden["near_0"])}  # from these mask logits no pixel flips
    with opened(bundle, engine) as segmenter:
        timeline = segmenter.stages.observer = Timeline(keep=True)
        regions = segmenter.describe(*given)
        segmenter.stages.observer = None
        kept = {
            name: np.concatenate(arrays) for name, arrays in timeline.kept.items() if name in ("crops", "patch_mask")
        }
        if "crop_features" not in golden:
            result = regions.classify(Vocabulary(meta["classes"]))
            assert regions.embeddings is None
            parity.check_probabilities(golden, 0, result.evidence.class_probabilities, regions.voters)
            parity.check_labels(golden, 0, result.labels)
            return
        check_second_stage(golden, meta, 0, segmenter, regions, kept["crops"], parity.CROP_TOLERANCE)
        if meta["model"]["clip_adapter"]["MASK_PROMPT_FWD"]:
            np.testing.assert_array_equal(kept["patch_mask"], golden["patch_mask_0"])
        else:
            assert "patch_mask" not in kept


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "emulated GPU"])
def test_mask_prompts(engine):
    check_from_proposals(bundle_for_case("t_swin_tiny14_mpt", any_proposals), "t_swin_tiny14_mpt", engine)


@pytest.mark.parametrize("case", OVSEG_CASES[1:])
def test_settings(case):
    check_from_proposals(bundle_for_case(case, any_proposals), case, "onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_OVSEG_CASES)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "emulated GPU"])
def test_other_weights(case, engine):
    check_from_proposals(bundle_for_case(case), case, engine)
