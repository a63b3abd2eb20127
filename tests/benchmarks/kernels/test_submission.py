"""The benchmark of submissions, on an emulated GPU: every image submits the same work."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cuda_emulation.devices import emulation
from tests.fake_driver.machine import FATBIN, installed
from vocabseg.benchmarks import kernel_bench
from vocabseg.benchmarks.kernels import submission
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.kernels.device.face import CudaKernels
from vocabseg.runtime.segmenter import cuda_stages


def test_every_image_submits_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_stages, "CudaKernels", lambda device: CudaKernels(device, FATBIN))
    monkeypatch.setattr(submission, "IMAGE", (48, 64))
    counts = [0]
    submit, replay = Stream.submit, Stream.replay

    def counted_submit(self: Stream, *arguments: Any) -> None:
        counts[-1] += 1
        submit(self, *arguments)

    def counted_replay(self: Stream, submissions: list[Any]) -> None:
        counts[-1] += len(submissions)
        replay(self, submissions)

    monkeypatch.setattr(Stream, "submit", counted_submit)
    monkeypatch.setattr(Stream, "replay", counted_replay)
    for images in (1, 2, 4):
        counts.append(0)
        monkeypatch.setattr(submission, "IMAGES", images)
        with installed(kernels=emulation()):
            kernel_bench.main(json_file=tmp_path / f"{images}.json", submission=True)
    _, one, two, four = counts
    assert four - two == 2 * (two - one) > 0

    rows = {row["step"]: row["times"] for row in json.loads((tmp_path / "4.json").read_text())}
    *steps, total = rows
    assert (steps, total) == (
        ["prepare", "propose", "describe", "encode", "finish", "classify", "compose"], "an image",
    )  # fmt: skip
    assert len(rows[total]) == 4
    for k, value in enumerate(rows[total]):
        assert value == pytest.approx(sum(rows[step][k] for step in steps)) != 0
    assert "an image" in capsys.readouterr().out
