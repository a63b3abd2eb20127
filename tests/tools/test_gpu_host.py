"""The script for a GPU host, as far as a machine without a GPU can tell: its plan, failures, limits and summary."""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.golden import REPOSITORY
from tests.gpu import REQUIRED
from tools import gpu_host
from tools.gpu_host import Step

SCRIPT = REPOSITORY / "tools" / "gpu_host.py"
ON_GPU = REPOSITORY / "tests" / "runtime" / "segmenter" / "test_on_gpu.py"


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


def test_a_dry_run_prints_every_step_and_does_nothing(tmp_path: Path) -> None:
    done = script("--wheels", tmp_path, "--results", tmp_path / "results", "--dry-run")
    assert done.returncode == 0, done.stderr
    for name in ("machine", "venv", "pycuda", "tests", "memcheck", "racecheck", "initcheck", "build", "memory"):
        assert f"{name} (at most" in done.stdout
    assert not (tmp_path / "results").exists()


def test_what_the_steps_run_is_there(tmp_path: Path) -> None:
    """Test folders, modules, and the expression that chooses the tests; no engine of TensorRT is installed here."""
    options = argparse.Namespace(wheels=tmp_path, bundle=None, quick=False)
    steps = {step.name: step for step in gpu_host.plan(options, tmp_path)}
    for step in steps.values():
        for part in step.command:
            if part.startswith("tests"):
                assert (REPOSITORY / part).exists(), part
            if part.startswith("vocabseg."):
                assert find_spec(part) is not None, part
    command = steps["tests"].command
    assert steps["tests"].environment == {REQUIRED: "1"}
    chosen = subprocess.run(
        [sys.executable, *command[1 : command.index("tests")], "--collect-only", str(ON_GPU)],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    names = [line.split("::")[1] for line in chosen.stdout.splitlines() if "::" in line]
    assert "test_one_image" in names
    missing = [name for name in ("tensorrt", "tensorrt_rtx_bindings") if find_spec(name) is None]
    assert len([name for name in names if "test_plans" in name]) == 2 - len(missing)


def test_what_needs_no_gpu_runs_and_a_failure_stops_nothing(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for number, content in enumerate((b"first ", b"second")):
        (wheels / f"big-1.0-py3-none-any.whl.part0{number}").write_bytes(content)
    results = tmp_path / "results"
    done = script("--wheels", wheels, "--results", results, "--only", "machine,join-wheels,doctor")
    assert (wheels / "big-1.0-py3-none-any.whl").read_bytes() == b"first second"
    summary = json.loads((results / "summary.json").read_text())
    states = {step["name"]: step["state"] for step in summary["steps"]}
    assert states["join-wheels"] == "passed"
    assert states["doctor"] == "failed"  # its environment was not made
    assert done.returncode == 1
    assert "| join-wheels | passed |" in done.stdout
    unknown = script("--wheels", wheels, "--only", "nonsense")
    assert unknown.returncode == 2
    assert "no step nonsense" in unknown.stdout


def test_a_step_that_takes_too_long_is_ended_with_all_its_children(tmp_path: Path) -> None:
    outcome = gpu_host.run(Step("slow", ["bash", "-c", "echo begun; sleep 60 & wait"], 1), tmp_path)
    assert outcome.state == "timed out"
    assert outcome.seconds < 10
    assert outcome.note == "begun"


@pytest.mark.parametrize(("command", "state"), [(["true"], "passed"), (["false"], "failed"), (["no-such"], "failed")])
def test_states(tmp_path: Path, command: list[str], state: str) -> None:
    assert gpu_host.run(Step("step", command, 10), tmp_path).state == state


def test_a_host_that_is_a_virtual_environment_lends_its_packages(tmp_path: Path) -> None:
    host, made = tmp_path / "host", tmp_path / "made"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", host], check=True)
    packages = next(host.glob("lib/python*/site-packages"))
    (packages / "of_the_host.py").write_text("WHERE = 'the host'")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [host / "bin" / "python", "-c", gpu_host.VENV, made]
    subprocess.run(command, check=True, env=environment)
    asked = [made / "bin" / "python", "-c", "import of_the_host, pip; print(of_the_host.WHERE)"]
    told = subprocess.run(asked, check=True, capture_output=True, text=True, env=environment).stdout
    assert told == "the host\n"


def test_wheels_that_the_host_has_are_left_alone(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "numpy-0.1-py3-none-any.whl", "w"):
        pass
    done = subprocess.run(
        [sys.executable, "-c", gpu_host._INSTALL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "0 of 1 wheels installed" in done.stdout
