"""The same figures from every engine: one engine's labels are the truth, and the others must score 100 on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmarks.accuracy.fakes import write_world
from tests.bundles import bundle_for_case
from tests.golden import load_golden
from tests.reference_cases import case_model, case_state_dict
from vocabseg.benchmarks.accuracy.evaluate import evaluate
from vocabseg.benchmarks.accuracy.measure import vocabulary_of
from vocabseg.benchmarks.accuracy.sources import BundleSource, ReferenceSegment, ReferenceSource, as_source
from vocabseg.benchmarks.datasets.registry import get_dataset
from vocabseg.export.configuration import load_configuration
from vocabseg.export.reference import ReferenceSegmenter
from vocabseg.runtime.bundle.settings import apply_settings
from vocabseg.runtime.errors import ConfigurationError

CASE = "c_r50_tiny16_vild"
# Without the region side: with random weights one pixel more in a hard mask can change the labels of a whole region.
SETTINGS = ("input.min_size=96", "input.max_size=160", "ensemble.enabled=false")
# The parity contract: mIoU on a data set is equal to 0.01 point.
TOLERANCE = 0.01
# Pixels whose two best classes are nearer than this may be labelled either way; with random weights there are many.
MARGIN = 1e-3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of a photo as scenes, labelled by ONNX Runtime with the random weights of a golden."""
    root = tmp_path_factory.mktemp("world")
    write_world(root, images=3, annotations=False)
    photo = load_golden(CASE)[0]["image_0"]
    for number in range(3):
        part = np.ascontiguousarray(photo[10 * number : 10 * number + 120, 20 * number : 20 * number + 150])
        Image.fromarray(part).save(root / "images" / "val" / f"{number:03d}.png")
    segmenter = BundleSource(bundle_for_case(CASE), SETTINGS, "onnxruntime").open()
    dataset = get_dataset("world", root)
    for sample in dataset.samples():
        result = segmenter(sample.image, vocabulary_of(dataset))
        second, first = np.sort(result.class_scores(), axis=0)[-2:]
        labels = np.where(first - second > MARGIN, result.labels, 255)
        Image.fromarray(labels.astype(np.uint8)).save(root / "annotations" / "val" / f"{sample.image_id}.png")
    return root


def test_engines_and_reference_agree(world: Path) -> None:
    dataset = get_dataset("world", world)
    _, _, configuration, model = case_model(CASE)
    reference = ReferenceSegmenter(model, apply_settings(configuration, SETTINGS))
    bundle = bundle_for_case(CASE)
    for source in (
        BundleSource(bundle, SETTINGS, "onnxruntime"),
        BundleSource(bundle, SETTINGS, "openvino"),
        ReferenceSegment(reference),
    ):
        accuracy = evaluate(source, dataset, examples=0).accuracy
        assert accuracy.semantic is not None
        assert accuracy.semantic.miou == pytest.approx(100, abs=TOLERANCE), accuracy.source
        assert sum(accuracy.semantic.pixels) > 0.5 * 3 * 120 * 150
        assert sum(pixels > 0 for pixels in accuracy.semantic.pixels) > 1, "labels of one class would prove nothing"


def test_a_checkpoint_by_its_file(world: Path, tmp_path: Path) -> None:
    checkpoint, name = tmp_path / "model.pth", "zsseg-r50-vitb16-vild"
    torch.save({"model": dict(case_state_dict(CASE))}, checkpoint)
    source = ReferenceSource(checkpoint, name, SETTINGS)
    reference = ReferenceSegmenter(case_model(CASE)[3], load_configuration(name, list(SETTINGS)))
    dataset = get_dataset("world", world)
    found = evaluate(source, dataset, limit=1, examples=0)
    expected = evaluate(ReferenceSegment(reference), dataset, limit=1, examples=0)
    assert found.confusion is not None
    assert expected.confusion is not None
    np.testing.assert_array_equal(found.confusion.counts, expected.confusion.counts)
    assert source.identity["engine"] == "pytorch-reference-float32"
    assert source.identity != ReferenceSource(checkpoint, name).identity


def test_a_bundle_in_two_workers(world: Path, tmp_path: Path) -> None:
    dataset, source = get_dataset("world", world), BundleSource(bundle_for_case(CASE), SETTINGS, "openvino")
    shared = evaluate(source, dataset, tmp_path, workers=2, examples=0)
    assert shared.accuracy == evaluate(source, dataset, examples=0).accuracy


def test_identity_follows_model_settings_and_engine() -> None:
    bundle = bundle_for_case(CASE)
    plain = BundleSource(bundle).identity
    assert plain == BundleSource(bundle).identity
    assert plain["manifest"] != BundleSource(bundle, SETTINGS).identity["manifest"]
    assert plain["engine"] != BundleSource(bundle, engine="onnxruntime").identity["engine"]
    opened = BundleSource(bundle, SETTINGS, "onnxruntime")
    assert as_source(opened.open()).identity == opened.identity
    with pytest.raises(ConfigurationError):
        _ = BundleSource(bundle, ("region.nothing=1",)).identity
