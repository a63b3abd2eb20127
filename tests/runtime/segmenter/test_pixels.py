"""The one-stage baseline, from its checkpoint to its labels: loading, the exported bundle, parity, what it refuses."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vocabseg
from vocabseg.benchmarks.accuracy.sources import BundleSource
from vocabseg.benchmarks.scenes.world import render_scene
from vocabseg.cli import main
from vocabseg.runtime.bundle.settings import adjust_manifest, open_adjusted
from vocabseg.runtime.errors import BundleError, CheckpointError, ConfigurationError, EngineError, VocabsegError
from vocabseg.runtime.segmenter.opening import open_segmenter
from vocabseg.runtime.segmenter.pixels import PixelSegmenter
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.serving.answering.requests import ImageRequest
from vocabseg.serving.answering.responder import Responder
from vocabseg.serving.protocol import RequestLimits, RequestOptions

torch = pytest.importorskip("torch", reason="exporting needs PyTorch")

NAMES = ["cat", "grass", "sky"]
SEEN = vocabseg.Vocabulary(NAMES, seen=["grass"])
CONFIGURATION = "zsseg-fcn-r101c-vitb16-single"
SIZES = ["input.min_size=90", "input.max_size=150", "region.crop_size=32"]


@pytest.fixture(scope="module")
def checkpoint():
    """Small weights in the layout of the published per-pixel checkpoint."""
    from tests.export.model.small_models import clip_shapes
    from vocabseg.export.checkpoint.random_weights import fill
    from vocabseg.export.model.maskformer import ProposalSizes
    from vocabseg.export.model.pixel_network import network_on_meta
    from vocabseg.export.model.resnet import ResNetSizes

    clip = clip_shapes()
    backbone = ResNetSizes((8, 8, 16), (1, 1, 1, 1), (8, 8, 8, 8), (32, 32, 32, 64))
    sizes = ProposalSizes(backbone=backbone, pixel=64, mask=32, class_layers=(clip["text_projection"][1],))
    shapes = {key: tuple(value.shape) for key, value in network_on_meta(sizes, True).state_dict().items()}
    shapes |= {f"clip_adapter.clip_model.{key}": shape for key, shape in clip.items()}
    shapes |= {"clip_adapter.pixel_mean": (1, 3, 1, 1), "clip_adapter.pixel_std": (1, 3, 1, 1)}
    return {key: torch.from_numpy(array) for key, array in fill(shapes).items()}


@pytest.fixture(scope="module")
def model(checkpoint):
    from vocabseg.export.checkpoint.load import load_model
    from vocabseg.export.configuration import load_configuration

    configuration = load_configuration(CONFIGURATION, SIZES)
    return load_model(checkpoint, configuration), configuration


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory) -> Path:
    from vocabseg.export.bundle import export_bundle

    return export_bundle(*model, tmp_path_factory.mktemp("pixels") / "fcn", name="fcn")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """No side is a multiple of four, before the resize or after it."""
    return render_scene(3, "test", 1, size=(101, 131), objects=2).image


def test_checkpoints_are_read_strictly(checkpoint) -> None:
    from vocabseg.export.checkpoint.load import load_model
    from vocabseg.export.checkpoint.published import published_shapes
    from vocabseg.export.configuration import load_configuration

    configuration = load_configuration(CONFIGURATION, SIZES)
    less = {key: value for key, value in checkpoint.items() if key != "sem_seg_head.predictor.bias"}
    with pytest.raises(CheckpointError, match=r"missing sem_seg_head\.predictor\.bias"):
        load_model(less, configuration)
    with pytest.raises(CheckpointError, match=r"extra sem_seg_head\.predictor\.input_proj"):
        load_model(checkpoint | {"sem_seg_head.predictor.input_proj.bias": torch.zeros(3)}, configuration)
    with pytest.raises(CheckpointError, match=r"extra sem_seg_head\.predictor\.(weight|bias)"):
        load_model(checkpoint, load_configuration("zsseg-r101c-vitb16-single", SIZES))
    published = published_shapes(load_configuration(CONFIGURATION))
    assert published["sem_seg_head.predictor.weight"] == (512, 256, 1, 1)
    assert "clip_adapter.non_object_embedding" not in published


@pytest.mark.parametrize("settings", [
    [], ["ensemble.enabled=false"], ["ensemble.weight=-1"], ["input.min_size=33", "input.max_size=47"],
], ids=" ".join)  # fmt: skip
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_scores_are_those_of_pytorch(model, bundle, image, engine, settings) -> None:
    from vocabseg.export.configuration import load_configuration
    from vocabseg.export.pixel_reference import PixelReference

    reference = PixelReference(model[0], load_configuration(CONFIGURATION, SIZES + settings))
    expected = reference.class_scores(image, NAMES, list(SEEN.seen)).numpy()
    result = open_segmenter(open_adjusted(bundle, settings), "cpu", engine)(image, SEEN)
    np.testing.assert_allclose(result.class_scores(), expected, atol=2e-4)
    np.testing.assert_allclose(result.scores, expected.max(0), atol=2e-4)
    best = np.sort(expected, axis=0)
    clear = best[-1] - best[-2] > 4e-4
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(result.labels[clear], expected.argmax(0)[clear])
    if not settings:
        assert len(np.unique(result.labels)) > 1
        assert (np.abs(expected - reference.class_scores(image, NAMES).numpy()) > 1e-3).any()


def test_features_can_be_asked_again(bundle, image, monkeypatch) -> None:
    segmenter = vocabseg.load(bundle, "cpu", "onnxruntime")
    assert isinstance(segmenter, Segmenter)
    manifest = segmenter.bundle.manifest
    assert sorted(manifest.graphs) == ["image_encoder", "pixel_encoder", "text_encoder"]
    assert manifest.parity["graphs"]["pixel_encoder"]
    features = segmenter.propose(image)
    first = features.classify(SEEN)
    monkeypatch.setattr(segmenter.engine("pixel_encoder"), "run", None)
    monkeypatch.setattr(segmenter.engine("image_encoder"), "run", None)
    again = features.classify([*NAMES[::-1], "water"])
    assert again.classes == [*NAMES[::-1], "water"]
    assert not np.array_equal(again.scores, first.scores)
    monkeypatch.undo()
    many = list(segmenter.segment_many([image, image[:, ::-1], image[:60, :50]], SEEN))
    np.testing.assert_array_equal(many[0].labels, first.labels)
    assert many[2].labels.shape == (60, 50)
    assert repr(features) == "PixelFeatures(101 x 131 pixels)"
    doubtful = first.confident(float(np.median(first.scores)))
    assert 0 < (doubtful.labels < 0).mean() < 1
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(first)).labels, first.labels)


def test_what_needs_masks_is_refused(bundle, image, monkeypatch) -> None:
    from vocabseg.runtime.engines import choose

    segmenter = vocabseg.load(bundle, "cpu", "onnxruntime")
    result = segmenter(image, NAMES)
    for question in (result.panoptic, result.instances, result.confident(0.5).panoptic, lambda: result.explain(1, 1)):
        with pytest.raises(VocabsegError, match="a per-pixel model has no masks"):
            question()
    with pytest.raises(VocabsegError, match="a per-pixel model has no regions"):
        segmenter.regions(image, np.zeros((1, *image.shape[:2]), bool))
    with pytest.raises(BundleError, match=r"fcn is a per-pixel model.*vocabseg\.load"):
        Segmenter(segmenter.bundle, "cpu")
    with pytest.raises(EngineError, match="fcn is a per-pixel model, which runs on a CPU only"):
        vocabseg.load(bundle, "cuda")
    square = adjust_manifest(segmenter.bundle.manifest, ["input.size=[64,64]", "input.fit=stretch"])
    assert PixelSegmenter(segmenter.bundle.with_manifest(square), "cpu")(image, NAMES).labels.shape == image.shape[:2]
    with pytest.raises(
        ConfigurationError, match=r"input\.size \[64, 64\] pads images .* per-pixel model does not take"
    ):
        adjust_manifest(segmenter.bundle.manifest, ["input.size=[64,64]"])
    monkeypatch.setattr(choose, "gpu_present", lambda: True)
    choose.tell_fallback.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert vocabseg.load(bundle).choice.device == "cpu"
    assert "fcn is a per-pixel model" in str(told[0].message)


def test_a_server_answers_what_there_is(bundle, image) -> None:
    wanted = (["LABELS", "SEGMENTS"], ["PANOPTIC"], ["LABELS", "MASK_LOGITS"])
    requests = [
        ImageRequest(image=image, vocabulary=SEEN, wanted=frozenset(names), options=RequestOptions())
        for names in wanted
    ]
    segmenter = vocabseg.load(bundle, "cpu", "onnxruntime")
    responder = Responder(segmenter, RequestLimits())
    answers: dict[int, Any] = {}
    responder.answer(requests, answers.__setitem__)
    responder.close()
    labels, *refused = (answers[index] for index in range(3))
    np.testing.assert_array_equal(labels["LABELS"], segmenter(image, SEEN).labels)
    assert ["a per-pixel model has no masks" in str(error) for error in refused] == [True, True]


def test_the_command_line(bundle, image, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(image).save("a.png")
    Image.fromarray(image[::-1]).save("b.png")

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return int(stop.value.code or 0), capsys.readouterr().err

    common = ("-b", bundle, "-c", "cat, grass, sky", "-q")
    code, err = run("segment", "a.png", "b.png", *common, "-o", "out/", "-w", "labels", "-w", "json", "-w", "overlay")
    assert (code, err, len(list(Path("out").iterdir()))) == (0, "", 6)
    expected = vocabseg.load(bundle, "cpu")(image, NAMES).labels
    np.testing.assert_array_equal(np.asarray(Image.open("out/a_labels.png")), expected)
    evaluated = BundleSource(bundle, device="cpu").open()(image, vocabseg.Vocabulary(NAMES))
    np.testing.assert_array_equal(evaluated.labels, expected)
    assert not hasattr(evaluated, "panoptic")  # so that accuracy is measured on labels alone
    refused = {
        "segment": ("a.png", *common, "-w", "panoptic", "-o", "p.json"),
        "explain": ("a.png", *common, "--at", "1,1"),
        "bench": (bundle, "-q"),
        "build": (bundle, "--precision", "fp16", "-q"),
        "triton": (bundle, "--gpus", "0", "-o", "models"),
    }
    for verb, arguments in refused.items():
        code, err = run(verb, *arguments)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert "per-pixel model" in err
    assert not Path("p.json").exists()
