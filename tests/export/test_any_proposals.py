"""Bundles of somebody's ONNX proposal network and a CLIP, and of a CLIP alone."""

from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

import vocabseg
from tests.export.model.small_models import (
    CROP,
    clip_shapes,
    clip_tensors,
    small_clip,
    small_configuration,
    small_model,
)
from tests.runtime.segmenter.test_cuda_stages import emulated
from vocabseg.benchmarks.scenes.world import render_scene
from vocabseg.benchmarks.speed.engine import EngineSpec
from vocabseg.benchmarks.speed.parity import compare_image
from vocabseg.benchmarks.speed.results import ImageInfo
from vocabseg.benchmarks.speed.roofline import stage_work
from vocabseg.export import bundle as bundle_writer
from vocabseg.export.bundle import check_graph, export_bundle
from vocabseg.export.graph.onnx_file import ExportError
from vocabseg.export.model.clip import MASK_PROMPTS
from vocabseg.export.pipeline import export_checkpoint
from vocabseg.export.proposals.onnx_proposals import NOWHERE, OnnxProposals
from vocabseg.export.tensorrt.profiles import default_profiles
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.bundle.manifest import MANIFEST, GraphRecord, file_record, read_manifest, sha256_file
from vocabseg.runtime.bundle.sections import InputSection
from vocabseg.runtime.bundle.settings import adjusted
from vocabseg.runtime.errors import BundleError, CheckpointError, ConfigurationError
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.segmenter.stages import input_sizes
from vocabseg.serving.answering.requests import ImageRequest
from vocabseg.serving.answering.responder import Responder
from vocabseg.serving.protocol import RequestLimits, RequestOptions

NAMES = ["cat", "grass", "sky"]
MASKS = 6
SMALL = (f"region.crop_size={CROP}", "input.min_size=64", "input.max_size=128")
RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((MASKS, 3, 4, 4)).astype(np.float32) / 4
SPREAD = 3 * RNG.standard_normal((MASKS, 3)).astype(np.float32)
SECTION = InputSection(min_size=64, max_size=128, divisor=32, mean=(0, 0, 0), std=(255, 255, 255))


def write_network(path: Path, size: tuple[int | str, int | str] = ("h", "w"), last: str = "", rank: int = 4) -> Path:
    """Mask logits by a convolution of stride 4, scores of the mean colour; the operation `last` spoils the masks."""
    nodes = [
        helper.make_node("Conv", ["pixels", "weights"], ["image"], strides=[4, 4], name="a"),  # a name that is ours
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "row"], ["colour"]),
        helper.make_node("Gemm", ["colour", "spread"], ["energies"], transB=1),
        helper.make_node("Sigmoid", ["energies"], ["scores"]),
        helper.make_node(last or "Identity", ["image"], ["mine"]),
        helper.make_node("Reshape", ["mine", "shape"], ["masks"]),
    ]
    shape = np.array([1, MASKS, 0, 0][4 - rank :], np.int64) if rank == 4 else np.array([MASKS, -1, 16], np.int64)
    constants = {"weights": WEIGHTS, "spread": SPREAD, "row": np.array([1, 3], np.int64), "shape": shape}
    masks: list[int | str] = [1, MASKS, "hm", "wm"]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", 1, [1, 3, *size])],
        [
            helper.make_tensor_value_info("scores", 1, [1, MASKS]),
            helper.make_tensor_value_info("colour", 1, [1, 3]),
            helper.make_tensor_value_info("masks", 1, masks[4 - rank :]),
        ][:: -1 if last else 1],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def computed(image: np.ndarray, min_score: float) -> np.ndarray:
    """What the network gives for an image (1, 3, H, W), by PyTorch, with the selection."""
    pixels = torch.from_numpy(image)
    logits = torch.nn.functional.conv2d(pixels, torch.from_numpy(WEIGHTS), stride=4)
    scores = torch.sigmoid(pixels.mean((2, 3)) @ torch.from_numpy(SPREAD).T)[0]
    logits[0, scores <= min_score] = NOWHERE
    return logits.numpy()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(clip_tensors(clip_shapes()), path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    folder = tmp_path_factory.mktemp("any")
    network = write_network(folder / "network.onnx")
    # The encoders' comparison has tests of its own.
    quick = mock.Mock(side_effect=lambda path, *given: check_graph(path, *given) if path.stem == "proposal" else {})
    with mock.patch.object(bundle_writer, "check_graph", quick):
        settings = [*SMALL, "clip.activation=quick_gelu", "input.mean=[90, 90, 90]"]
        return export_checkpoint(
            "regions", folder / "bundle", None, str(clip), settings, proposals=network, min_score=0.45
        )


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return render_scene(3, "test", 1, size=(96, 120), objects=3).image


def test_the_bundle_finds_what_the_network_finds(exported: Path, image: np.ndarray) -> None:
    manifest = open_bundle(exported).manifest
    record = manifest.graphs["proposal"]
    assert [tensor.shape for tensor in (*record.inputs, *record.outputs)] == [
        [1, 3, "height", "width"], [1, MASKS, "height/4", "width/4"]
    ]  # fmt: skip
    assert (record.provenance["made_from"], record.provenance["min_score"]) == ("network.onnx", 0.45)
    assert not manifest.has_queries
    for engines in (manifest.parity["graphs"]["proposal"],):
        assert len(engines) == 2
        assert all(outputs["mask_logits"]["cosine"] >= 0.99999 for outputs in engines.values())
    seen: dict[str, np.ndarray] = {}
    segmenter = vocabseg.load(exported, engine="onnxruntime")
    segmenter.stages.observer = mock.Mock(note=lambda name, **_: None)
    segmenter.stages.observer.note = lambda name, arrays: seen.update(arrays)
    regions = segmenter.propose(image)
    expected = computed(seen["network_input"], 0.45)
    kept = expected[0].max((1, 2)) > NOWHERE
    assert 0 < kept.sum() < MASKS  # the scores decide something
    np.testing.assert_allclose(regions.mask_logits, expected[0], atol=1e-5)
    assert not regions.valid[~kept].any()
    assert regions.valid.any()
    # CLIP alone decides: the probabilities are those of its own towers.
    model = small_clip()
    with torch.no_grad():
        features = torch.nn.functional.normalize(model.make_image_tower(CROP)(torch.from_numpy(seen["crops"])), dim=-1)
    text = torch.from_numpy(segmenter.text.region_matrix(vocabseg.Vocabulary(NAMES)))
    found, voters, no_object = regions.probabilities(vocabseg.Vocabulary(NAMES))
    np.testing.assert_allclose(found, (100 * features @ text.T).softmax(-1).numpy(), atol=1e-3)
    np.testing.assert_array_equal(voters, np.flatnonzero(regions.valid))
    assert not no_object.any()
    # The same from these masks given by hand.
    given = segmenter.describe(image, seen["resized"], regions.mask_logits, None, regions.padded_size)
    np.testing.assert_array_equal(given.classify(NAMES).labels, regions.classify(NAMES).labels)


@pytest.mark.parametrize("settings", [(), ("ensemble.enabled=false",), ("input.size=[64, 96]", "input.fit=stretch")])
def test_the_same_on_a_gpu_and_on_many_images(exported: Path, image: np.ndarray, settings: tuple[str, ...]) -> None:
    host = Segmenter(adjusted(open_bundle(exported), settings), engine="onnxruntime")
    images = [image, image[::-1].copy(), image[:60]]
    expected = [host(one, NAMES) for one in images]
    assert {len(np.unique(result.labels)) for result in expected} != {1}
    with emulated(exported, text=host.text) as segmenter:
        segmenter.bundle = segmenter.stages.bundle = host.bundle
        for found in (segmenter.segment_many(images, NAMES), (segmenter(one, NAMES) for one in images)):
            for result, wanted in zip(found, expected, strict=True):
                assert (result.labels == wanted.labels).mean() >= 0.9999
                np.testing.assert_allclose(result.scores, wanted.scores, atol=1e-4)


def test_it_is_served_and_measured(exported: Path, image: np.ndarray, tmp_path: Path) -> None:
    names = vocabseg.Vocabulary(NAMES)
    local = vocabseg.load(exported, engine="onnxruntime")
    expected = local(image, names)
    responder = Responder(local, RequestLimits())
    wanted = frozenset(["LABELS", "SCORES"])
    request = ImageRequest(image=image, vocabulary=names, wanted=wanted, options=RequestOptions())
    answers: list[Any] = []
    responder.answer([request], lambda index, found: answers.append(found))
    responder.close()
    (answer,) = answers
    np.testing.assert_array_equal(answer["LABELS"], expected.labels)
    Image.fromarray(image).save(tmp_path / "image.png")
    one, other = (EngineSpec(exported, engine, "float32", names).open() for engine in ("onnxruntime", "openvino"))
    reference = one.capture(tmp_path / "image.png")
    alone, whole = other.capture_from(tmp_path / "image.png", reference), other.capture(tmp_path / "image.png")
    figures = compare_image(reference, alone, whole, load_kernels(), local.bundle.manifest.region).values
    assert "queries" not in figures
    assert figures["labels, same"] == 1
    assert figures["cosine worst"] >= 0.99999
    info = ImageInfo(name="image.png", size=image.shape[:2], padded=reference.padded, regions=len(reference.boxes))
    work = stage_work(local.bundle, info, 1000, len(NAMES))
    # 3 x 4 x 4 products for every mask at every fourth pixel, and two operations for each.
    rows, columns = (side // 4 for side in reference.padded)
    assert work["proposal"].operations >= 2 * MASKS * rows * columns * 48
    assert len(default_profiles(local.bundle.manifest, "proposal", local.bundle.graph("proposal"))) == 2


def test_a_clip_alone_has_no_proposal_network(tmp_path: Path, clip: Path) -> None:
    def empty(module, sample, dimensions, path, *given) -> GraphRecord:
        path.write_bytes(b"x")
        return GraphRecord(
            **msgspec.structs.asdict(file_record(path.parent, path.name)), inputs=[], outputs=[], opset=21
        )

    settings = [*SMALL, "clip.activation=gelu"]
    prompted = str(tmp_path / "prompted.pt")
    torch.save(clip_tensors({**clip_shapes(), MASK_PROMPTS: (1, 4, 64)}), prompted)
    licensed = [*settings, "weights.license=CC BY-NC 4.0"]
    grids = {}
    with (
        mock.patch.object(bundle_writer, "check_graph", return_value={}) as checked,
        mock.patch.object(bundle_writer, "export_graph", side_effect=empty),
    ):
        for choice in ("false", "none"):
            chosen = [*licensed, f"clip.mask_prompts={choice}"]
            found = read_manifest(export_checkpoint("regions", tmp_path / choice, None, prompted, chosen) / MANIFEST)
            assert found.weights_license == "CC BY-NC 4.0"
            grids[choice] = found.region.patch_grid
        with pytest.raises(CheckpointError, match=r"no mask prompts .* --set clip.mask_prompts=false"):
            export_checkpoint("regions", tmp_path / "bad", None, str(clip), [*settings, "clip.mask_prompts=true"])
        checked.reset_mock()
        folder = export_checkpoint("regions", tmp_path / "alone", None, str(clip), settings)
    assert grids == {"false": 0, "none": 2}
    manifest = read_manifest(folder / "manifest.json")
    assert (list(manifest.graphs), manifest.masks) == (["image_encoder", "text_encoder"], "given")
    assert manifest.provenance["activation"]["region"] == "gelu"
    assert manifest.provenance["weights"] == "clip.pt"  # without the folders of whoever exported it
    assert manifest.provenance["weights_sha256"] == sha256_file(clip)
    photos = [arrays["crops"] for call in checked.mock_calls for arrays in call.args[2] if "crops" in arrays]
    assert [len(crops) for crops in photos] == [1, 3, 3]  # noise, and the photo with its halves


def test_networks_of_one_size_and_masks_without_a_batch(tmp_path: Path) -> None:
    network = OnnxProposals(write_network(tmp_path / "fixed.onnx", (64, 64), rank=3))
    section = network.input_section(SECTION)
    assert (section.size, section.fit) == ((64, 64), "pad")
    dimensions = network.dimensions(section)
    assert dimensions == {"image": [1, 3, 64, 64], "mask_logits": [1, MASKS, 16, 16]}
    record = network.save(tmp_path / "proposal.onnx", dimensions)
    assert record.outputs[0].shape == [1, MASKS, 16, 16]
    image = RNG.random((1, 3, 64, 64), np.float32)
    found = check_graph(tmp_path / "proposal.onnx", network, [{"image": image}], "fixed.onnx")
    assert all(figures["mask_logits"]["max_abs"] < 1e-5 for figures in found.values())
    np.testing.assert_allclose(network(torch.from_numpy(image)).numpy(), computed(image, 0.5), atol=1e-5)
    # Without scores all proposals are kept, here under a name that was something else's.
    model = onnx.load(write_network(tmp_path / "fixed.onnx", (64, 64)))
    del model.graph.output[0]
    onnx.save(model, tmp_path / "fixed.onnx")
    network = OnnxProposals(tmp_path / "fixed.onnx")
    network.save(tmp_path / "proposal.onnx", network.dimensions(section))
    found = check_graph(tmp_path / "proposal.onnx", network, [{"image": image}], "fixed.onnx")
    assert all(figures["mask_logits"]["max_abs"] < 1e-5 for figures in found.values())
    np.testing.assert_allclose(network(torch.from_numpy(image)).numpy(), computed(image, -1), atol=1e-5)
    with pytest.raises(ExportError, match=r"\[64, 64\] pixels alone, and input.size is \[32, 64\]"):
        network.input_section(
            InputSection(min_size=1, max_size=1, divisor=32, mean=(0,) * 3, std=(1,) * 3, size=(32, 64))
        )


def test_images_are_fitted_to_one_size() -> None:
    def sizes(height: int, width: int, fit: str) -> object:
        section = msgspec.structs.replace(SECTION, size=(60, 90), fit=fit)
        return input_sizes(section, height, width)

    assert sizes(300, 300, "stretch") == ((60, 90), (60, 90))
    assert sizes(300, 300, "pad") == ((60, 60), (60, 90))
    assert sizes(10, 30, "pad") == ((30, 90), (60, 90))
    assert sizes(1, 9000, "pad") == ((1, 90), (60, 90))
    assert input_sizes(SECTION, 100, 200) == ((64, 128), (64, 128))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"last": "Sigmoid"}, "as probabilities are: let it give logits"),
        ({"last": "Sqrt"}, "infinite or no numbers"),
        ({"size": (64, "w")}, "one fixed and one dynamic size, 1 x 3 x 64 x w FLOAT"),
    ],
)
def test_networks_that_cannot_be_used(tmp_path: Path, clip: Path, options: dict, told: str) -> None:
    path = write_network(tmp_path / "network.onnx", **options)
    with pytest.raises(ExportError, match=told) as caught:
        export_checkpoint("regions", tmp_path / "bundle", None, str(clip), SMALL, proposals=path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_files_that_are_no_proposal_network(tmp_path: Path) -> None:
    def refused(path: Path, **given: object) -> str:
        with pytest.raises(ExportError) as caught:
            OnnxProposals(path, **given).dimensions(SECTION)
        return str(caught.value)

    path = write_network(tmp_path / "network.onnx")
    assert "no proposal network at" in refused(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("text")
    assert "is no ONNX graph" in refused(tmp_path / "text.onnx")
    model = onnx.load(path)

    def changed(change) -> Path:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        change(copy.graph)
        onnx.save(copy, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    assert "has 2 inputs (pixels, more)" in refused(
        changed(lambda graph: graph.input.append(helper.make_tensor_value_info("more", 1, [1])))
    )
    assert "takes pixels 1 x 4 x h x w FLOAT" in refused(
        changed(lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 4))
    )
    assert "has the outputs colour: call" in refused(changed(lambda graph: graph.output.pop()))
    assert "no output 'scores'" in refused(changed(lambda graph: graph.output.pop(0)), min_score=0.1)


def test_a_bundle_that_could_not_be_opened_is_not_written(tmp_path: Path, clip: Path) -> None:
    network = write_network(tmp_path / "network.onnx")
    settings = [*SMALL, "clip.activation=gelu", "input.size=[100, 64]"]
    with pytest.raises(ConfigurationError, match=r"input.size \[100, 64\] must be multiples of input.divisor 32"):
        export_checkpoint("regions", tmp_path / "bundle", None, str(clip), settings, proposals=network)
    with pytest.raises(ConfigurationError, match=r"input.size \[100, 64\] must be multiples of input.divisor 32"):
        export_bundle(small_model(), small_configuration("input.size=[100, 64]"), tmp_path / "bundle", "small")
    assert not (tmp_path / "bundle").exists()


def test_manifests_that_do_not_fit(exported: Path) -> None:
    bundle = open_bundle(exported)
    with pytest.raises(ConfigurationError, match=r"input.size \[100, 64\] must be multiples of input.divisor 32"):
        adjusted(bundle, ["input.size=[100, 64]"])
    assert adjusted(bundle, ["input.size=[64, 64]", "input.size=none"]).manifest == bundle.manifest
    with pytest.raises(BundleError, match=r"has no query\.non_object_embedding"):
        Segmenter(bundle).text.query_matrix(vocabseg.Vocabulary(NAMES))
