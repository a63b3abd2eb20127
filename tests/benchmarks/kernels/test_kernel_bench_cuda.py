"""The benchmark of the CUDA kernels: its arithmetic, and every call of it on an emulated GPU at a small size."""

import numpy as np
import pytest

from tests.cuda_emulation.devices import opened
from vocabseg.benchmarks.kernels import cuda as bench
from vocabseg.benchmarks.kernels import inputs as sizes
from vocabseg.benchmarks.kernels.inputs import Inputs
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.masks import Masks


def test_rates() -> None:
    call = bench.KernelCall("kernel", lambda k: None, bytes=48_000_000, operations=12_000_000_000)
    found = bench.speed(call, [30, 20, 16], peak=4800)
    assert found.median == 20
    assert found.bandwidth == pytest.approx(2400)  # 48 MB in 20 us
    assert found.share == pytest.approx(0.5)
    assert found.tera_operations == pytest.approx(600)  # 12 GFLOP in 20 us


@pytest.mark.parametrize(("size", "copies"), [(1, 64), (100_000_000, 3), (10**9, 2), (0, 64)])
def test_copies_outgrow_the_cache(size: int, copies: int) -> None:
    assert bench.rotations(size) == copies


def test_every_call_on_an_emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"ORIGINAL": (17, 25), "RESIZED": (27, 40), "PADDED": (32, 64), "CROP_SIZE": 8, "PATCH_GRID": 4}
    for name, value in small.items():
        for module in (sizes, bench):
            monkeypatch.setattr(module, name, value)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(6, 8, 16)).astype(np.float32)
    logits[4] = -20
    image = generator.integers(0, 256, (17, 25, 3), dtype=np.uint8)
    host = load_kernels("host")
    resized = host.resize_normalize(image, (27, 40), (32, 64), (0, 0, 0), (1, 1, 1))[1]
    masks = Masks(logits, (32, 64), (27, 40), (17, 25))
    boxes, areas = host.region_boxes(masks, 0.5)
    indices = np.flatnonzero(areas).astype(np.int32)
    inputs = Inputs("test", image, resized, logits, boxes[indices], indices)
    probabilities = generator.dirichlet(np.ones(5), 6).astype(np.float32)
    with opened("emulated") as device:
        stream = device.stream
        arrays = [bench.Arrays(device.device, stream, inputs, probabilities, half=False) for _ in range(2)]
        calls = bench.calls(device.kernels, stream, arrays, len(indices))
        for call in calls:
            times = bench.time_calls(call, 2, stream, repeats=2)
            assert len(times) == 2
            assert min(times) >= 0
        for own in arrays:
            np.testing.assert_array_equal(own.boxes.to_host(stream)[indices], inputs.boxes)
            assert own.count.to_host(stream).tolist() == [len(indices)]
            wanted = host.compose(masks, probabilities)
            np.testing.assert_allclose(own.scores.to_host(stream), wanted[1], atol=5e-6)
        assert bench.copy_bandwidth(device.device, stream, 2**12) >= 0
        names = [call.name.split(",")[0] for call in calls]
        cut = ["crop_regions", "patch_masks"]
        assert names == ["resize_normalize", "region_boxes", "select_regions", *cut, "compose"]
        assert calls[1].bytes == 6 * 8 * 16 * 4 + 6 * 5 * 4 + 6 * 27 * 2 * 4
        assert calls[5].operations == 2 * 6 * 5 * 17 * 25
