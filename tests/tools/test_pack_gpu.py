"""What tools/pack_gpu.sh makes, with a pip that stands for the network: parts that gpu_parts.py unpacks."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.golden import REPOSITORY
from tests.tools.test_zero_architectures import CUBIN, container, elf, entry, kept
from tools import gpu_parts

# Every download is a wheel: ONNX Runtime's with a library of three GPUs, others of numbers that do not compress.
PIP = """#!/usr/bin/env bash
set -eu
while [ $# -gt 0 ]; do
    case $1 in
        --dest) dest=$2; shift ;;
        --no-binary) echo source > "$dest/pycuda-1.tar.gz"; exit ;;
        onnxruntime-gpu) cp "$ONNXRUNTIME" "$dest/" ;;
        msgspec) head --bytes 3000000 /dev/urandom > "$dest/msgspec-1-py3-none-any.whl" ;;
    esac
    shift
done
"""


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.skipif(shutil.which("xz") is None, reason="xz is not installed")
def test_parts_of_at_most_the_largest_size(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    pip = tmp_path / "bin" / "pip"
    pip.write_text(PIP)
    pip.chmod(0o755)
    provider = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    library = elf(container(*(entry(CUBIN, sm) for sm in (80, 90, 120))))
    onnxruntime = wheel(tmp_path / "onnxruntime_gpu-1-cp312-cp312-linux_x86_64.whl", {provider: library})
    rtx = wheel(tmp_path / "tensorrt_rtx-1-py3-none-any.whl", {"tensorrt_rtx/__init__.py": b"rtx"})
    # As the script, with smaller pieces.
    script = tmp_path / "pack_gpu.sh"
    script.write_text((REPOSITORY / "tools" / "pack_gpu.sh").read_text().replace("largest=60000000", "largest=1300000"))
    shutil.copy(REPOSITORY / "tools" / "zero_architectures.py", tmp_path)
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ONNXRUNTIME": str(onnxruntime),
    }  # fmt: skip
    command = ["bash", str(script), str(tmp_path / "parts")]
    run = subprocess.run([*command, str(rtx)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "parts").iterdir()}
    pieces = {f"1-host.tar.xz.0{k}" for k in range(3)}
    assert sizes.keys() == {*pieces, "2-onnxruntime.tar.xz", "3-tensorrt-rtx.tar.xz"}
    assert max(sizes.values()) == 1_300_000
    work = tmp_path / "work"
    work.mkdir()
    assert gpu_parts.packages(tmp_path / "parts", work)["tensorrt-rtx"]
    assert len(gpu_parts.unpack(tmp_path / "parts", work)) == 3
    assert (work / "wheels" / "msgspec-1-py3-none-any.whl").stat().st_size == 3_000_000
    assert (work / "wheels" / "pycuda-1.tar.gz").read_text() == "source\n"
    assert kept((work / "site" / provider).read_bytes()) == [["cubin 90"]]
    assert (work / "site" / "tensorrt_rtx" / "__init__.py").read_bytes() == b"rtx"
    for given, told in (("nothing.whl", "there is no nothing.whl"), (str(onnxruntime), "is no wheel of PyCUDA")):
        bad = subprocess.run([*command, given], env=environment, capture_output=True, text=True, check=False)
        assert (bad.returncode, told in bad.stderr) == (2, True)
