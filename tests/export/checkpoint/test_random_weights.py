"""Weights drawn from names: equal, bit for bit, to the recipe behind the goldens."""

import hashlib
import json
import zlib

import numpy as np
import pytest

from tests.reference_cases import reference_file, shapes
from vocabseg.export.checkpoint.random_weights import fill
from vocabseg.export.model.clip import MEAN

# CRC-32 of the bytes of tensors that exercise the rules; the first two lines are published in the reference material.
CHECKSUMS = {
    "backbone.stem.conv1.weight": 150054589,
    "sem_seg_head.predictor.query_embed.weight": 3948620539,
}


def test_checksums_of_single_tensors() -> None:
    wanted = {key: shapes("keys_R50_vild")[key] for key in CHECKSUMS}
    assert {key: zlib.crc32(array.tobytes()) for key, array in fill(wanted).items()} == CHECKSUMS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "layout"), [("R50_vild", "keys_R50_vild"), ("R101c_learnable_separate", "keys_R101c_learnable_separate")]
)
def test_checksums_of_published_layouts(case: str, layout: str) -> None:
    check = json.loads(reference_file("fill_check.json").read_text())[case]
    arrays = fill(shapes(layout))
    assert len(arrays) == check["keys"]
    for key, expected in check["crc"].items():
        assert zlib.crc32(arrays[key].tobytes()) == expected, key
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(arrays[key].tobytes())
    assert digest.hexdigest() == check["sha256"]


def test_a_tensor_depends_on_its_name_alone() -> None:
    wanted = shapes("c3_r50_tinyrn_learn_suffix")
    head = {key: shape for key, shape in wanted.items() if key.startswith("sem_seg_head.")}
    everything, part = fill(wanted), fill(dict(reversed(head.items())))
    for key in head:
        np.testing.assert_array_equal(everything[key], part[key])


def test_constants_and_copies() -> None:
    wanted = shapes("c3_r50_tinyrn_learn_suffix")
    arrays = fill({key: shape for key, shape in wanted.items() if not key.startswith(("backbone.", "sem_seg_head."))})
    assert {key: array.shape for key, array in arrays.items()} == {key: wanted[key] for key in arrays}
    assert arrays["criterion.empty_weight"][-1] == np.float32(0.1)
    np.testing.assert_array_equal(
        arrays["clip_adapter.pixel_mean"].ravel(), np.float32(255) * np.asarray(MEAN, np.float32)
    )
    table = arrays["clip_adapter.clip_model.token_embedding.weight"]
    np.testing.assert_array_equal(arrays["clip_adapter.prompt_learner.dot_signal"], table[269:270])
    np.testing.assert_array_equal(arrays["clip_adapter.prompt_learner.end_signal"], table[49407:49408])
    steps = arrays["clip_adapter.clip_model.visual.bn1.num_batches_tracked"]
    assert steps.dtype == np.int64
    assert steps == 0


def test_separate_adapter_has_the_same_clip() -> None:
    shape = (8, 3, 4, 4)
    arrays = fill(
        {f"{adapter}.clip_model.visual.conv1.weight": shape for adapter in ("clip_adapter", "_region_clip_adapter")}
    )
    first, second = arrays.values()
    np.testing.assert_array_equal(first, second)
