"""The benchmark of the kernels: both sides do the same work, a wrong result is an error, and the report is complete."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare the kernels with")

from vocabseg.benchmarks import kernel_bench  # noqa: E402
from vocabseg.benchmarks.kernels import host  # noqa: E402
from vocabseg.benchmarks.kernels.inputs import class_probabilities, recorded_inputs, synthetic_inputs  # noqa: E402
from vocabseg.runtime.errors import OutputError  # noqa: E402


def test_synthetic_input_is_like_a_network_s() -> None:
    inputs = synthetic_inputs()
    assert inputs.mask_logits.shape == (100, 160, 240)
    assert 85 <= len(inputs.indices) <= 95
    assert inputs.resized.shape == (640, 959, 3)
    width, height = (inputs.boxes[:, 2:] - inputs.boxes[:, :2]).T
    assert (width * height).min() < 0.02 * 640 * 959 < 0.5 * 640 * 959 < (width * height).max()
    decided, undecided = (class_probabilities(50, flag).max(axis=1).mean() for flag in (True, False))
    assert decided > 0.3 > 0.05 > undecided


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a_r50_vitb16_vild\.npz does not exist: give the folder"):
        recorded_inputs(tmp_path)


def test_a_run_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kernels.json"
    kernel_bench.main(json_file=path, threads=1, repeats=3, seconds=0, classes=[3], only="resize", many=40)
    result = json.loads(path.read_text())
    (timing,) = result["kernels"]
    assert timing["name"] == "resize_normalize"
    assert len(timing["kernel"]) == len(timing["torch"]) == 3
    assert timing["ratio"] == pytest.approx(np.median(timing["torch"]) / np.median(timing["kernel"]))
    assert timing["error"] <= timing["tolerance"]
    assert result["machine"]["threads"] == 1
    assert result["many_classes"]["classes"] == 40
    assert "resize_normalize" in capsys.readouterr().out


def test_a_wrong_result_is_an_error() -> None:
    wrong = host.Contender("shifted", lambda: np.ones(3), lambda: torch.zeros(3), host.largest_difference, 0.5)
    with pytest.raises(host.WrongResultError, match=r"shifted is 1 off PyTorch, 0\.5 is allowed"):
        host.measure(wrong, 3, 0)


def test_labels_are_judged_by_their_scores() -> None:
    scores = torch.tensor([0.2, 0.5, 0.3]).reshape(3, 1, 1)
    wanted = scores, scores.argmax(dim=0)
    best, second = (np.full((1, 1), label, np.int32) for label in (1, 2))
    assert host.score_difference((best, np.full((1, 1), 0.5, np.float32)), wanted) == 0
    assert host.score_difference((second, np.full((1, 1), 0.5, np.float32)), wanted) == pytest.approx(0.2)
    assert host.score_difference((best, np.full((1, 1), 0.4, np.float32)), wanted) == pytest.approx(0.1)
