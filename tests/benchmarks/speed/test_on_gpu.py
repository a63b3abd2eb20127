"""The benchmark's variant on a GPU, on an emulated one: what it keeps and times, against the host's variant."""

from pathlib import Path

import numpy as np
import pytest

from tests.cuda_emulation import stand_ins
from tests.fake_driver.machine import installed
from tests.golden import REPOSITORY
from vocabseg.benchmarks.speed.engine import EngineSpec
from vocabseg.benchmarks.speed.machine import PeakMeter
from vocabseg.benchmarks.speed.selection import make_benchmark
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.engines import device_engines
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.segmenter import cuda_stages
from vocabseg.runtime.segmenter import segmenter as segmenters
from vocabseg.runtime.text.vocabulary import Vocabulary

NAMES = Vocabulary(["dog", "grass", "house", "water"])
CHOICE = Choice(name="onnxruntime", device="cuda:0", precision="float32", reason="a test says so")
SCENE = REPOSITORY / "examples" / "scene.png"


@pytest.fixture
def variant(monkeypatch):
    monkeypatch.setattr(device_engines, "open_graph", stand_ins.graphs())
    monkeypatch.setattr(cuda_stages, "CudaKernels", stand_ins.HostKernels)
    monkeypatch.setattr(segmenters, "choose", lambda *_: CHOICE)
    with installed():
        yield EngineSpec(demo_folder(), "onnxruntime", "float32", NAMES, device="cuda:0").open()


def test_a_run_tells_every_stage(variant):
    run = variant.run(SCENE)
    kernels = {"resize_normalize", "region_boxes", "crop_regions", "classify", "compose"}
    assert set(run.stages) == {"decode", "proposal", "image_encoder", *kernels}
    assert min(run.stages.values()) >= 0
    assert run.regions > 0
    assert run.total > run.stages["decode"]
    assert variant.many([SCENE, SCENE]) > 0
    assert variant.text(["a thing"]) > 0
    assert variant.device_memory() > 2**20


def test_what_is_captured_is_what_the_host_captures(variant):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenters, "choose", choose)
        expected = EngineSpec(demo_folder(), "onnxruntime", "float32", NAMES).open().capture(SCENE)
    for found in (variant.capture(SCENE), variant.capture_from(SCENE, expected)):
        for name in ("resized", "valid", "boxes", "voters"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
        for name in ("network_input", "mask_logits", "query_embeddings", "crops", "embeddings", "probabilities"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-4, err_msg=name)
        assert np.mean(found.labels == expected.labels) > 0.9999
    np.testing.assert_array_equal(variant.labels(SCENE), found.labels)


def test_a_benchmark_for_a_gpu_says_why_there_is_none():
    bundle = open_bundle(demo_folder())
    with pytest.raises(EngineError, match="pycuda"):
        make_benchmark(bundle, NAMES, [Path("x.png")], "", "onnxruntime", device="cuda")


def test_peaks_of_a_gpu_need_one():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match="sees no GPU"):
        PeakMeter("cuda:0").measure()


@pytest.mark.gpu
def test_peaks_of_this_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    peaks = PeakMeter("cuda:0").measure()
    assert peaks.products["float16"] > 2 * peaks.products["float32"] > 1e12
    assert peaks.copy > 1e11
