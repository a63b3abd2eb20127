"""ONNX Runtime leaves nothing about its user behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCENE = Path(__file__).parents[3] / "examples" / "scene.png"
# Variables of build machines, where ONNX Runtime keeps no telemetry of its own accord.
BUILD_MACHINES = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY")


@pytest.mark.parametrize("setting", [None, "0"])
def test_no_telemetry_unless_the_user_sets_it(tmp_path: Path, setting: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in BUILD_MACHINES}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "VOCABSEG_CACHE_DIR": ""}
    environment |= {} if setting is None else {"ORT_DISABLE_TELEMETRY": setting}
    code = (
        "import os, sys; from vocabseg.cli import main; print(os.environ['ORT_DISABLE_TELEMETRY']); main(sys.argv[1:])"
    )
    command = ["segment", str(SCENE), "--engine", "onnxruntime", "-q", "-o", str(tmp_path / "out.png")]
    found = subprocess.run([sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[0] == (setting or "1")
    if setting is None:
        assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
