"""Image encoders that take a region's patch mask beside its crop: on the CPU's engines, on a GPU, and around them."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vocabseg
from tests.attack.broken import edit, refused
from tests.doubles import tensorrt as tensorrt_double
from tests.doubles.tensorrt_cases import build, run_on_host
from tests.fake_driver.machine import Machine, installed
from tests.golden import REPOSITORY
from tests.prompted import prompted_bundle
from tests.runtime.engines.test_onnxruntime_cuda import HostArray, open_on_cpu
from tests.runtime.engines.test_tensorrt import Runner
from tests.runtime.segmenter.test_cuda_stages import assert_same, emulated, emulated_kernels
from vocabseg.benchmarks.speed.engine import EngineSpec
from vocabseg.benchmarks.speed.parity import compare_image, judge
from vocabseg.benchmarks.speed.results import ImageInfo
from vocabseg.benchmarks.speed.roofline import stage_work
from vocabseg.benchmarks.speed.variants import Timeline
from vocabseg.calibration.samples.calibration_images import CalibrationImage
from vocabseg.calibration.samples.ranges import observe
from vocabseg.calibration.search.fidelity import cosine
from vocabseg.export.half.convert import add_half_graphs
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.cuda.device import open_device
from vocabseg.runtime.engines.onnxruntime_session import BoundSession
from vocabseg.runtime.engines.tensorrt.graph import TensorRtGraph
from vocabseg.runtime.engines.tensorrt.package import load_package
from vocabseg.runtime.engines.tensorrt.scratch import scratch_of
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels import reference
from vocabseg.runtime.kernels.geometry import expand_boxes
from vocabseg.runtime.segmenter.host_stages import cropping
from vocabseg.runtime.segmenter.segmenter import Segmenter

NAMES = ["dog", "grass", "house", "water"]
GRID = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return prompted_bundle(tmp_path_factory.mktemp("prompted") / "bundle", GRID)


@pytest.fixture(scope="module")
def image():
    return load_image(REPOSITORY / "examples" / "scene.png")[:120, :160].copy()


@pytest.fixture(scope="module")
def host(bundle):
    segmenter = Segmenter(open_bundle(bundle), engine="onnxruntime")
    segmenter.embed_names(vocabseg.Vocabulary(NAMES))
    return segmenter


def watched(segmenter, work):
    """What `work` gives, and the arrays that the stages noted meanwhile."""
    timeline = segmenter.stages.observer = Timeline(keep=True)
    found = work()
    segmenter.stages.observer = None
    return found, {name: np.concatenate(arrays) for name, arrays in timeline.kept.items() if name.endswith("mask")}


@pytest.mark.parametrize("settings", [[], ["region.matting=true", "region.expand_ratio=1.3"]])
def test_the_encoder_gets_the_patches_of_its_region(bundle: Path, image: np.ndarray, settings: list[str]) -> None:
    opened = open_adjusted(bundle, settings)
    region = opened.manifest.region
    alone = Segmenter(open_bundle(None), engine="onnxruntime").propose(image)
    for engine in ("onnxruntime", "openvino"):
        segmenter = Segmenter(opened, engine=engine, precision="float32")
        found, arrays = watched(segmenter, lambda segmenter=segmenter: segmenter.propose(image))
        boxes = expand_boxes(found.boxes, region.expand_ratio, found.image_size)
        indices = np.flatnonzero(found.valid).astype(np.int32)
        wanted = reference.patch_masks(found.masks, boxes, indices, cropping(region), GRID)
        np.testing.assert_array_equal(arrays["patch_mask"], wanted)
        assert wanted.all() if region.matting else 0.3 < wanted.mean() < 0.95
        if not settings:
            assert (found.embeddings * alone.embeddings).sum(axis=1).max() < 0.99
            np.testing.assert_array_equal(found.boxes, alone.boxes)


def test_one_region_and_none(host: Segmenter, image: np.ndarray) -> None:
    masks = np.zeros((3, *image.shape[:2]), bool)
    masks[1, 10:60, 20:90] = True
    one, arrays = watched(host, lambda: host.regions(image, masks))
    assert arrays["patch_mask"].tolist() == np.ones((1, GRID, GRID)).tolist()
    labels = one.classify(NAMES).labels
    assert (labels >= 0).sum() == 50 * 70
    assert (host.regions(image, masks[:1]).classify(NAMES).labels == -1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_on_a_gpu(bundle: Path, host: Segmenter, image: np.ndarray, dtype: type) -> None:
    """The kernels' own source and one batch of several images; then less memory, so that batches start anywhere."""
    images = [image, image[:, ::-1], image[::2, ::2]]
    with emulated_kernels(bundle, Machine(seed=4), text=host.text, dtype=dtype) as segmenter:
        found, arrays = watched(segmenter, lambda: segmenter.propose(image))
        expected, wanted = watched(host, lambda: host.propose(image))
        np.testing.assert_array_equal(arrays["patch_mask"], wanted["patch_mask"])
        assert arrays["patch_mask"].dtype == dtype
        np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-4 if dtype is np.float32 else 2e-2)
        if dtype is np.float32:
            for one, other in zip(segmenter.segment_many(images, NAMES), images, strict=True):
                assert_same(one, host(other, NAMES))
    with emulated(bundle, text=host.text, dtype=dtype) as segmenter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segmenter.engine("image_encoder").graph.out_of_memory_above = 3
        again = segmenter.propose(image)
        np.testing.assert_allclose(again.embeddings, expected.embeddings, atol=1e-4 if dtype is np.float32 else 2e-2)
        assert max(segmenter.graphs["image_encoder"].batches) <= 3


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("region.patch_grid", 0),
        ("region.patch_grid", 3),
        ("graphs.image_encoder.inputs.1.shape", ["batch", GRID, 5]),
        ("graphs.image_encoder.inputs.1.name", "mask"),
    ],
)
def test_bundles_that_contradict_themselves(tmp_path: Path, place: str, value: object) -> None:
    folder = prompted_bundle(tmp_path / "bundle", GRID)
    edit(folder, place, value)
    assert "image_encoder" in refused(folder)


def test_a_grid_finer_than_the_crop(tmp_path: Path) -> None:
    folder = prompted_bundle(tmp_path / "bundle", 65)
    assert "its region.patch_grid is 65, but its crops have 64 pixels a side" in refused(folder)


def test_calibration_and_benchmarks_feed_both_inputs(bundle: Path, image: np.ndarray, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    ranges = observe(opened, [CalibrationImage("own", "0", lambda: image)], seed=0)["image_encoder"]
    assert (ranges["patches"].low, ranges["patches"].high) == (0, 1)
    info = ImageInfo(name="", size=(60, 80), padded=(64, 96), regions=1)
    work, alone = (stage_work(each, info, 1, 1)["image_encoder"] for each in (opened, open_bundle(None)))
    assert work.operations >= alone.operations + 2 * GRID * GRID * 128  # the product with the patches' vectors
    Image.fromarray(image).save(tmp_path / "image.png")
    first, other = (
        EngineSpec(bundle, engine, "float32", vocabseg.Vocabulary(NAMES)).open()
        for engine in ("onnxruntime", "openvino")
    )
    expected = first.capture(tmp_path / "image.png")
    own, whole = other.capture_from(tmp_path / "image.png", expected), other.capture(tmp_path / "image.png")
    assert own.patch_masks is not None
    assert own.patch_masks.shape == (len(own.boxes), GRID, GRID)
    wrong = replace(own, patch_masks=1 - own.patch_masks)
    broken = [
        judge(
            [compare_image(expected, each, whole, first.segmenter.kernels, opened.manifest.region)], "", "float32"
        ).broken
        for each in (own, wrong)
    ]
    assert broken == [None, "crop_regions"]


def test_half_graphs_on_the_engines_of_a_gpu(tmp_path: Path) -> None:
    """A plan of TensorRT's double, and ONNX Runtime bound to memory: both inputs are FP16, and share the batch."""
    opened = add_half_graphs(open_bundle(prompted_bundle(tmp_path / "bundle", GRID)))
    generator = np.random.default_rng(0)
    given = {
        "crops": generator.normal(size=(3, 3, 64, 64)).astype(np.float16),
        "patch_mask": generator.integers(0, 2, (3, GRID, GRID)).astype(np.float16),
    }
    wanted = run_on_host(opened, "image_encoder", "float16", given)["image_features"]
    wide = {name: array.astype(np.float32) for name, array in given.items()}
    (single,) = run_on_host(opened, "image_encoder", "float32", wide).values()
    assert cosine(single, wanted).min() > 0.999
    with installed(Machine()), tensorrt_double.installed():
        device = open_device(0)
        build(opened, "image_encoder", device, "image_encoder:crops=1,4,6")
        plan = TensorRtGraph(opened, "image_encoder", "float16", device, scratch_of(device), load_package())
        assert plan.input_dtypes == {"crops": np.float16, "patch_mask": np.float16}
        assert plan.largest_batch == 6
        run = Runner(plan, device)
        np.testing.assert_array_equal(run(given, {"image_features": wanted.shape})["image_features"], wanted)
        with pytest.raises(
            EngineError, match=r"crops 9x3x64x64, patch_mask 9x4x4: .* --profile image_encoder:crops=1,4,9"
        ):
            run({name: np.repeat(array, 3, axis=0) for name, array in given.items()}, {"image_features": (9, 128)})
        with pytest.raises(EngineError, match="the graph has the inputs crops, patch_mask, given are crops"):
            run({"crops": given["crops"]}, {"image_features": wanted.shape})
    session = BoundSession(open_on_cpu(opened.graph_path("image_encoder", "float16")), "cpu", 0, cuda_graphs=False)
    found = HostArray(np.zeros(wanted.shape, np.float16))
    session.run({name: HostArray(array) for name, array in given.items()}, {"image_features": found})
    assert cosine(found.array, wanted).min() > 0.9999
