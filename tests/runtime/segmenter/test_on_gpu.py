"""The pipeline on a real GPU: the twins of test_cuda_segmenter.py, and every golden within the contract."""

import numpy as np
import pytest

import vocabseg
from tests import parity
from tests.bundles import bundle_for_case
from tests.doubles.tensorrt_cases import half_bundle
from tests.golden import REPOSITORY, load_golden
from tests.gpu import skip_without_gpu
from tests.reference_cases import SMALL_CASES
from tests.runtime.segmenter.test_goldens import check_second_stage, watched
from vocabseg.export.tensorrt.builder import BuildOptions
from vocabseg.export.tensorrt.installer import build_engine
from vocabseg.export.tensorrt.profiles import choose_profiles
from vocabseg.export.tensorrt.target import choose_generations, open_target
from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.cuda.device import open_device
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.images import load_image

pytestmark = pytest.mark.gpu
NAMES = ["dog", "grass", "house", "water"]


def on_gpu(bundle=None, engine=None, precision=None):
    """A segmenter on the first GPU; skips, with the reason, where there is none."""
    try:
        open_device(0)
    except EngineError as error:
        skip_without_gpu(error)
    return vocabseg.load(bundle, device="cuda", engine=engine, precision=precision)


@pytest.fixture(scope="module")
def image():
    return load_image(REPOSITORY / "examples" / "scene.png")


@pytest.fixture(scope="module")
def gpu():
    return on_gpu(demo_folder(), "onnxruntime", "float32")


@pytest.fixture(scope="module")
def host():
    return vocabseg.load(demo_folder(), device="cpu", engine="onnxruntime")


def assert_same(found, expected):
    every = np.sort(expected.class_scores(), axis=0)[-2:]
    clear = every[1] - every[0] > 1e-4
    agreement = (found.labels == expected.labels)[clear].mean()
    assert agreement >= 0.9999, f"{agreement:.6f} of the clear pixels"
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


def test_one_image(gpu, host, image):
    for _ in range(3):  # the third replays CUDA graphs
        assert_same(gpu(image, NAMES), host(image, NAMES))


def test_many_images(gpu, host, image):
    images = [image, image[:, ::-1], image[20:180, 30:200], image[::2, ::2], image[:100], image[::-1]]
    for one, single in zip(gpu.segment_many(images * 3, NAMES), images * 3, strict=True):
        assert_same(one, host(single, NAMES))


@pytest.mark.parametrize("case", SMALL_CASES)
def test_goldens_from_the_published_proposals(case):
    golden, meta = load_golden(case)
    segmenter = on_gpu(bundle_for_case(case), "onnxruntime", "float32")
    for index in range(len(meta["images"])):
        resized = np.ascontiguousarray(golden[f"resized_{index}"].transpose(1, 2, 0))
        given = (golden[f"image_{index}"], resized, golden["pred_masks"][index], golden["class_embed"][index])
        regions, crops = watched(segmenter, segmenter.describe, *given, tuple(meta["padded"]))
        np.testing.assert_array_equal(regions.areas, golden.get(f"area_{index}", regions.areas))
        steady = {**golden, f"near_{index}": np.zeros_like(golden[f"near_{index}"])}
        agreement, _ = check_second_stage(steady, meta, index, segmenter, regions, crops, parity.CROP_TOLERANCE)
        print(f"{case}[{index}]: labels {agreement:.6f}")


def test_an_image_of_torch(gpu, host, image):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch was built without CUDA, or sees no GPU")
    assert_same(gpu(torch.from_numpy(np.ascontiguousarray(image)).cuda(), NAMES), host(image, NAMES))


def test_memory_stays_flat(gpu, image):
    small = [image[:60, : 80 + 8 * number] for number in range(6)]
    for count in (100, 200):
        for _ in gpu.segment_many((small[number % 6] for number in range(count)), NAMES):
            pass
        after = gpu.device.memory()
        if count == 100:
            before = after
    for pool in ("managed", "pinned"):  # how many images are under way at once varies, and so does their memory
        assert after[pool] - before[pool] < 2 << 20, pool
    assert before["free"] - after["free"] < 16 << 20


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_plans_built_for_this_gpu_give_the_labels_within_the_half_precision_contract(host, image, tmp_path, engine):
    pytest.importorskip(engine.replace("-", "_"), reason=f"the engine {engine} is not installed", exc_type=ImportError)
    try:
        major, minor = open_device(0).compute_capability
    except EngineError as error:
        skip_without_gpu(error)
    generations = choose_generations(engine, "float16", [f"sm{major}{minor}"] if engine == "tensorrt-rtx" else [])
    target = open_target(engine, 0, generations)
    bundle = half_bundle(tmp_path / "demo")
    for graph, profiles in choose_profiles(bundle.manifest, bundle.manifest.graphs, []).items():
        build_engine(bundle, graph, "float16", profiles, BuildOptions(), target)
    expected = host(image, NAMES).labels
    for _ in range(2):  # the second finds the kernels that the first compiled
        segmenter = on_gpu(bundle.folder, engine)
        for _ in range(3):  # the third replays CUDA graphs
            assert (segmenter(image, NAMES).labels == expected).mean() >= 0.995
