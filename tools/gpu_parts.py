"""Install what tools/pack_gpu.sh made: gpu_parts.py PARTS WORK [REPOSITORY].

Archives NAME.tar.xz, or their pieces NAME.tar.xz.00, NAME.tar.xz.01, ..., are unpacked in WORK, once: wheels in
WORK/wheels, packages that are ready in WORK/site. Then wheels whose package the host lacks are installed in WORK/site,
PyCUDA is built if it came as source, and the repository is installed, its kernels for this host's GPU.
"""

import importlib.metadata
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO

BUILD_PYCUDA = Path(__file__).with_name("build_pycuda.py")
PIP = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "-q", "--target"]
# What tells an engine: a module of the host's, or a file of WORK/site or of a part.
ENGINES = {
    "onnxruntime-gpu": ("onnxruntime_gpu", "onnxruntime/capi/libonnxruntime_providers_cuda.so", "onnxruntime"),
    "tensorrt": ("tensorrt", "tensorrt/__init__.py", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx/__init__.py", "tensorrt-rtx"),
}


def packages(parts: Path, work: Path) -> dict[str, bool]:
    """Which engines the host has, or will have when the parts are installed; a part is named after its engine."""
    return {
        name: installed(package) or (work / "site" / file).is_file() or any(parts.glob(f"?-{part}.tar.xz*"))
        for name, (package, file, part) in ENGINES.items()
    }


def cuda_tool(name: str) -> str | None:
    """The path of a tool of the CUDA toolkit, None without it."""
    nvcc = shutil.which("nvcc")
    roots = [Path("/usr/local/cuda")] + ([Path(os.path.realpath(nvcc)).parents[1]] if nvcc else [])
    beside = (root / "bin" / name for root in roots)
    return shutil.which(name) or next((str(path) for path in beside if path.is_file()), None)


def installed(package: str) -> bool:
    """Whether this Python has the package."""
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


class Joined(io.RawIOBase):
    """Files read as one."""

    def __init__(self, paths: list[Path]):
        self._files: Iterator[IO[bytes]] = (path.open("rb") for path in paths)
        self._file = next(self._files)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: bytearray) -> int:
        """As of io.RawIOBase."""
        while True:
            data = self._file.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            following = next(self._files, None)
            if following is None:
                return 0
            self._file.close()
            self._file = following


def unpack(parts: Path, work: Path) -> list[str]:
    """The names of the archives, each unpacked in `work` unless that was done before."""
    names = sorted({re.sub(r"\.\d\d$", "", path.name) for path in parts.glob("*.tar.xz*")})
    for name in names:
        pieces = sorted(path for path in parts.iterdir() if re.fullmatch(re.escape(name) + r"(\.\d\d)?", path.name))
        done = work / f".{name}-{sum(path.stat().st_size for path in pieces)}"
        if done.is_file():
            continue
        with tarfile.open(fileobj=lzma.LZMAFile(io.BufferedReader(Joined(pieces))), mode="r|") as archive:
            archive.extractall(work, filter="data")
        done.touch()
    return names


def _own_architecture() -> list[str]:
    """The option that builds the kernels for this host's GPU alone, which takes seconds instead of a minute."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True).stdout.split()
    except OSError:
        found = []
    return ["-C", f"cmake.define.VOCABSEG_SM={found[0].replace('.', '')}"] if found else []


def main() -> int:
    """0 if everything could be installed."""
    parts, work, *repository = map(Path, sys.argv[1:])
    site = work / "site"
    site.mkdir(parents=True, exist_ok=True)
    names, failed = unpack(parts, work), []
    sys.path.insert(0, str(site))
    wheels = sorted((work / "wheels").glob("*.whl"))
    wanted = [wheel for wheel in wheels if not installed(wheel.name.split("-")[0])]
    for wheel in wanted:
        if subprocess.run([*PIP, str(site), str(wheel)]).returncode:
            failed.append(wheel.name)
    if any((work / "wheels").glob("pycuda-*.tar.gz")) and find_spec("pycuda") is None:
        command = [sys.executable, str(BUILD_PYCUDA), str(work / "wheels"), str(work / "pycuda"), str(site)]
        failed += ["pycuda"] if subprocess.run(command).returncode else []
    for folder in repository:
        command = [*PIP, str(site), "--upgrade", "--no-build-isolation", *_own_architecture(), str(folder)]
        if subprocess.run(command).returncode:
            failed.append(str(folder))
    came = f"{len(names)} parts ({', '.join(names)}), {len(wanted)} of {len(wheels)} wheels wanted here"
    print(came + (f"; failed: {', '.join(failed)}" if failed else ": all installed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
