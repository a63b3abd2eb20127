"""The built-in demo model: right on scenes it never saw, from every engine, and wrong where it must be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vocabseg
from vocabseg.benchmarks.accuracy.evaluate import evaluate
from vocabseg.benchmarks.accuracy.metrics import SetMetrics
from vocabseg.benchmarks.accuracy.sources import BundleSource, ReferenceSource
from vocabseg.benchmarks.datasets.registry import get_dataset
from vocabseg.benchmarks.scenes.files import SCENES, rendered_world
from vocabseg.benchmarks.scenes.world import CLASSES, SEEN, render_scene
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.kernels.geometry import padded_size, resized_size

TRAINING = Path(__file__).parents[3] / "examples" / "train_demo"
FEW = 60  # scenes where engines are compared


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return rendered_world(SCENES)


def measured(source: Any, world: Path, limit: int) -> SetMetrics:
    """mIoU over the seen classes, over the unseen ones, and their harmonic mean, in percent."""
    accuracy = evaluate(source, get_dataset("world", world), limit=limit, measures=["semantic"], examples=0).accuracy
    assert accuracy.images == limit
    assert accuracy.semantic is not None
    return accuracy.semantic.sets["base"]


def test_it_is_right_on_500_held_out_scenes(world: Path) -> None:
    found = measured(BundleSource(demo_folder()), world, SCENES)
    assert found.miou >= 80
    assert found.complement_miou >= 60
    assert found.hiou >= 68


def test_every_engine_and_the_reference_give_the_same_figure(world: Path) -> None:
    reference = ReferenceSource(TRAINING / "model.safetensors", str(TRAINING / "demo.toml"))
    expected = measured(reference, world, FEW)
    for engine in ("onnxruntime", "openvino"):
        found = measured(BundleSource(demo_folder(), engine=engine, precision="float32"), world, FEW)
        assert found.miou == pytest.approx(expected.miou, abs=0.01)
        assert found.complement_miou == pytest.approx(expected.complement_miou, abs=0.01)


def test_shuffled_text_and_random_proposals_make_it_collapse(world: Path) -> None:
    assert measured(_shuffled_text(), world, FEW).hiou < 5
    assert measured(_random_proposals(), world, FEW).hiou < 5


def _shuffled_text() -> Callable[[Any, vocabseg.Vocabulary], Any]:
    """Every class is asked for by another one's name."""
    segmenter = vocabseg.load()
    order = np.random.default_rng(0).permutation(len(CLASSES))
    shuffled = vocabseg.Vocabulary([CLASSES[index] for index in order], SEEN)
    return lambda image, vocabulary: segmenter(image, shuffled)


def _random_proposals() -> Callable[[Any, vocabseg.Vocabulary], Any]:
    """The network's query embeddings with masks that are rectangles anywhere."""
    segmenter = vocabseg.load()
    generator = np.random.default_rng(0)
    settings = segmenter.bundle.manifest.input

    def segment(image: Any, vocabulary: vocabseg.Vocabulary) -> Any:
        proposed = segmenter.propose(image)
        pixels = proposed.image
        size = resized_size(pixels.shape[0], pixels.shape[1], settings.min_size, settings.max_size)
        padded = padded_size(*size, settings.divisor)
        resized = segmenter.kernels.resize_normalize(pixels, size, padded, settings.mean, settings.std)[1]
        logits = np.full_like(proposed.mask_logits, -8)
        h, w = logits.shape[1:]
        for mask in logits:
            top, left = generator.integers(0, h - 8), generator.integers(0, w - 8)
            mask[top : top + generator.integers(6, h // 2), left : left + generator.integers(6, w // 2)] = 8
        return segmenter.describe(pixels, resized, logits, proposed.query_embeddings, padded).classify(vocabulary)

    return segment


def test_its_bundle_is_small_and_declares_its_classes() -> None:
    bundle = open_bundle(demo_folder())
    assert bundle.manifest.vocabulary == list(CLASSES)
    assert bundle.manifest.seen == list(SEEN)
    assert sum(path.stat().st_size for path in demo_folder().rglob("*")) <= 16e6
    card = (demo_folder() / "README.md").read_text()
    for word in ("Limits", "mIoU", "train.py"):
        assert word in card


def test_load_without_a_bundle_is_the_demo_model() -> None:
    segmenter = vocabseg.load()
    assert segmenter.bundle.manifest.name == "demo"
    own = segmenter.vocabulary()
    assert own.names == CLASSES
    assert own.seen is not None
    np.testing.assert_array_equal(own.seen, SEEN)


def test_bfloat16_keeps_the_parity_contract_on_every_scene() -> None:
    """The FP16 / BF16 column: the proposals are float32's, and so are the boxes; the rest within its limits."""
    exact, half = (vocabseg.load(engine="openvino", precision=name) for name in ("float32", "bfloat16"))
    cosines = []
    for index in range(6):
        image = render_scene(0, "test", index).image
        wanted, found = exact.propose(image), half.propose(image)
        np.testing.assert_array_equal(found.mask_logits, wanted.mask_logits)
        np.testing.assert_array_equal(found.boxes, wanted.boxes)
        cosines.append((found.embeddings * wanted.embeddings).sum(axis=1))
        agreement = (found.classify(exact.vocabulary()).labels == wanted.classify(exact.vocabulary()).labels).mean()
        assert agreement >= 0.995, f"scene {index}: {agreement:.4f}"
    together = np.concatenate(cosines)
    assert together.mean() >= 0.9995
    assert together.min() >= 0.998
