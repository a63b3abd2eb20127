"""What tools/gpu_wheels.sh leaves in its folder, with a pip that stands for one of an empty environment."""

import os
import subprocess
from pathlib import Path

from tests.golden import REPOSITORY

# Like pip without setuptools, wheel and NumPy beside it: it gets no source's metadata without isolation.
PIP = """#!/usr/bin/env bash
set -eu
source=""
while [ $# -gt 0 ]; do
    case $1 in
        --dest) dest=$2; shift;;
        --no-binary) source=$2; shift;;
        --no-build-isolation) echo "BackendUnavailable: Cannot import 'setuptools.build_meta'" >&2; exit 2;;
    esac
    shift
done
if [ -n "$source" ]; then echo source > "$dest/$source-1.tar.gz"; exit; fi
echo small > "$dest/small-1-py3-none-any.whl"
head --bytes 130000000 /dev/zero > "$dest/large-1-py3-none-any.whl"
"""


def test_an_environment_with_nothing_but_pip_is_enough(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    pip = tmp_path / "bin" / "pip"
    pip.write_text(PIP)
    pip.chmod(0o755)
    run = subprocess.run(
        ["bash", REPOSITORY / "tools" / "gpu_wheels.sh", tmp_path / "wheels"],
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "wheels").iterdir()}
    assert sizes == {
        "small-1-py3-none-any.whl": 6, "pycuda-1.tar.gz": 7, "large-1-py3-none-any.whl.part00": 60_000_000,
        "large-1-py3-none-any.whl.part01": 60_000_000, "large-1-py3-none-any.whl.part02": 10_000_000,
    }  # fmt: skip
