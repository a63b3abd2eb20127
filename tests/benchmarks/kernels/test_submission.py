"""The benchmark of submissions, on an emulated GPU whose kernels do nothing: every image submits the same work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda_emulation import fake_pycuda
from tests.cuda_emulation.machine import Machine
from vocabseg.benchmarks import kernel_bench
from vocabseg.benchmarks.kernels import submission
from vocabseg.runtime.kernels.device.face import CudaKernels
from vocabseg.runtime.segmenter import cuda_stages

REGIONS = 3


def launch(name: str, grid: Any, block: Any, shared_bytes: int, data: bytes) -> None:
    """Nothing but the number of regions, whose address is the last argument of select_regions."""
    if name == "select_regions":
        (address,) = np.frombuffer(data[-8:], np.uint64)
        fake_pycuda.machine().bytes(int(address), 4).view(np.int32)[0] = REGIONS


def test_every_image_submits_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_stages, "CudaKernels", lambda device: CudaKernels(device, b"emulated"))
    monkeypatch.setattr(submission, "IMAGES", 4)
    path, machine = tmp_path / "submission.json", Machine()
    with fake_pycuda.installed(machine, launch):
        kernel_bench.main(json_file=path, submission=True)
    rows = {row["step"]: row["times"] for row in json.loads(path.read_text())}
    *steps, total = rows
    assert (steps, total) == (
        ["prepare", "propose", "describe", "encode", "finish", "classify", "compose"], "an image",
    )  # fmt: skip
    for k, value in enumerate(rows[total]):
        assert value == pytest.approx(sum(rows[step][k] for step in steps)) != 0
    assert len(rows[total]) == 4
    assert "an image" in capsys.readouterr().out

    launches = [name for name in machine.launches if name != "resize_table"]
    assert machine.launches.count("resize_table") == 2
    images = np.array(launches).reshape(4 + submission.WARM_UP, -1)
    assert images[0].tolist() == [
        "resize_normalize_f32", "find_unusable_f32", "find_unusable_f32", "region_boxes_start", "region_boxes_f32",
        "region_boxes_finish", "select_regions", "crop_regions_bits_f32", "find_unusable_f32", "similarity", "classify",
        "compose_classes", "compose_f32",
    ]  # fmt: skip
    assert (images == images[0]).all()
