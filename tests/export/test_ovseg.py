"""OVSeg's networks as a bundle: Swin and mask prompts in every graph and precision, and the licence of its weights."""

import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tests.export.model.small_models import CROP, EMBEDDING, clip_shapes, clip_tensors, small_proposal
from vocabseg.export.bundle import export_bundle
from vocabseg.export.checkpoint.load import Model
from vocabseg.export.configuration import load_configuration
from vocabseg.export.half.convert import add_half_graphs, add_plan_graphs
from vocabseg.export.model.clip import MASK_PROMPTS, build_clip
from vocabseg.export.reference import ReferenceSegmenter
from vocabseg.export.tensorrt.builder import BuildOptions, build_plan
from vocabseg.export.tensorrt.profiles import choose_profiles, default_profiles
from vocabseg.export.tensorrt.target import choose_generations, open_target
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.bundle.plans import Range
from vocabseg.runtime.engines.host_engines import Engine
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import ConfigurationError

GRID = 2
PATCH_MASKS = np.array([[[1, 1], [1, 1]], [[0, 1], [0, 0]], [[0, 0], [0, 0]]], np.float32)


@pytest.fixture(scope="module")
def configuration():
    sizes = ["input.min_size=64", "input.max_size=128", f"region.crop_size={CROP}", "prompt.query=single"]
    return load_configuration("ovseg-swinb-vitl14", sizes)


@pytest.fixture(scope="module")
def clip():
    shapes = {**clip_shapes(), MASK_PROMPTS: (2, GRID * GRID, 64)}
    return build_clip(clip_tensors(shapes))


@pytest.fixture(scope="module")
def bundle(configuration, clip, tmp_path_factory):
    """Exported with the comparison of all graphs and modules, then in FP16 and bfloat16."""
    model = Model(small_proposal(swin=True), clip, clip, None, None, torch.ones(1, EMBEDDING))
    folder = tmp_path_factory.mktemp("ovseg") / "bundle"
    path = export_bundle(model, configuration, folder, name="small", weights_license=configuration.weights.license)
    return add_plan_graphs(add_half_graphs(open_bundle(path)), "bfloat16")


def run(bundle, graph, precision, **inputs):
    choice = Choice(name="onnxruntime", device="cpu", precision="float32", reason="")
    return Engine(bundle.graph_path(graph, precision), choice).run(inputs)


def test_the_manifest(bundle, configuration):
    manifest = bundle.manifest
    assert manifest.region.patch_grid == GRID
    assert manifest.ensemble == configuration.ensemble
    assert not manifest.ensemble.seen_rule
    assert manifest.weights_license == "CC BY-NC 4.0"
    record = manifest.graphs["image_encoder"]
    assert [tensor.name for tensor in record.inputs] == ["crops", "patch_mask"]
    assert record.inputs[1].shape == ["batch", GRID, GRID]
    assert set(manifest.parity["graphs"]) == set(manifest.graphs)


def test_where_a_region_is_decides_in_every_precision(bundle, clip):
    crops = np.random.default_rng(0).normal(size=(3, 3, CROP, CROP)).astype(np.float32)
    with torch.inference_mode():
        wanted = clip.image_tower(torch.tensor(crops), torch.tensor(PATCH_MASKS)).numpy()
        plain = clip.image_tower(torch.tensor(crops)).numpy()
    assert cosines(wanted[:1], plain[:1]).min() > 0.999999  # a region that covers all patches
    assert cosines(wanted[1:], plain[1:]).max() < 0.99
    for precision, limit in (("float32", 0.99999), ("float16-rounded", 0.998)):
        found = run(bundle, "image_encoder", precision, crops=crops, patch_mask=PATCH_MASKS)["image_features"]
        assert cosines(found, wanted).min() > limit, precision
    half = bundle.manifest.variants["float16"]["image_encoder"]
    assert [tensor.dtype for tensor in half.inputs] == ["float16", "float16"]


def cosines(found, wanted):
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return (found.astype(np.float64) * wanted).sum(axis=1) / lengths


def test_swin_for_images_of_one_window_and_of_many(bundle):
    module = small_proposal(swin=True)
    for height, width in ((32, 32), (64, 416), (352, 96)):
        image = np.random.default_rng(height).normal(size=(1, 3, height, width)).astype(np.float32)
        with torch.inference_mode():
            wanted = module(torch.tensor(image))[0].numpy()
        for precision, limit in (("float32", 1e-3), ("float16-rounded", 0.1)):
            found = run(bundle, "proposal", precision, image=image)["mask_logits"]
            assert np.abs(found - wanted).max() < limit * np.abs(wanted).max(), (precision, height, width)


def test_profiles_hold_both_inputs(bundle):
    manifest, record = bundle.manifest, bundle.manifest.graphs["image_encoder"]
    (profile,) = default_profiles(manifest, "image_encoder", record)
    assert profile["patch_mask"].max == [profile["crops"].max[0], GRID, GRID]
    chosen = choose_profiles(manifest, {"image_encoder": record}, ["image_encoder:crops=1,4,8"])
    assert chosen["image_encoder"][0]["patch_mask"] == Range(
        min=[1, GRID, GRID], opt=[4, GRID, GRID], max=[8, GRID, GRID]
    )


@pytest.mark.parametrize("graph", ["image_encoder", pytest.param("proposal", marks=pytest.mark.slow)])
def test_nvidias_builder_takes_the_graphs(bundle, graph):
    """TensorRT for RTX's own, which needs no GPU."""
    if find_spec("tensorrt_rtx_bindings") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no genuine builder: pip install 'vocabseg[rtx]'")
    target = open_target("tensorrt-rtx", 0, choose_generations("tensorrt-rtx", "float16", ("sm89",)))
    record = bundle.graph(graph, "float16")
    profiles = default_profiles(bundle.manifest, graph, record)
    built = build_plan(bundle.path(record.file), profiles, BuildOptions(), target)
    assert built.data.startswith(b"vtrt")
    if graph == "image_encoder":
        assert {types.split(" ")[-1] for types in built.explanation.products} == {"FP16"}


@pytest.mark.parametrize("valid", [0, 1])
def test_no_region_and_a_single_one(configuration, clip, valid):
    """Where the published code fails."""
    model = Model(small_proposal(swin=True), clip, clip, None, None, torch.ones(1, EMBEDDING))
    segmenter = ReferenceSegmenter(model, configuration)
    masks = torch.full((2, 16, 24), -20.0)
    masks[:valid, 4:9, 3:20] = 20.0
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    text = segmenter.text_embeddings(["cat", "grass", "sky"])
    output = segmenter.classify(image, image, masks, torch.randn(2, EMBEDDING), text)
    assert output.valid.tolist() == [valid == 1, False]
    assert output.patch_masks.shape == (valid, GRID, GRID)
    assert output.region_embeddings.shape == (valid, EMBEDDING)
    query = output.query_logits.softmax(dim=1)[:, :-1]
    wanted = query ** (1 - 0.7)  # no region's evidence, which counts as 1
    if valid:
        wanted[0] *= (100 * output.region_embeddings[0] @ output.region_text.T).softmax(dim=0) ** 0.7
    assert torch.allclose(output.class_probabilities, wanted, atol=1e-5)


def test_crops_of_another_size(clip):
    with pytest.raises(ConfigurationError, match=f"crop size 64 .* region.crop_size={CROP}"):
        clip.make_image_tower(64)
