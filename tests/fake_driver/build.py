"""Builds what the fake driver is made of: PyCUDA, once, from its sources, and the fakes, when they have changed."""

import contextlib
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import platformdirs

from tests.cuda_emulation.library import compiler, emulation

HERE = Path(__file__).parent
PYCUDA = "2026.1"
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-Wall", "-shared")
ONNXRUNTIME = "1.31.1"
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
# The fakes and the sources of each; all but the driver are for ONNX Runtime.
FAKES = {
    "libcuda.so.1": ("driver.cpp", "machine.cpp"),
    "libcudart.so.13": ("runtime.cpp",),
    "libcublas.so.13": ("cublas.cpp",),
    **dict.fromkeys(("libcublasLt.so.13", "libcurand.so.10", "libcudnn.so.9"), ("handles.cpp",)),
}


KERNELS = "FAKE_DRIVER_KERNELS"  # the variable that names the emulated kernels of a process that runs over the fakes


class MissingError(Exception):
    """A piece that the fake driver needs is not there; the message names it and the way to it."""


def cuda_headers() -> Path:
    """The folder of the driver's headers: of a toolkit, or of NVIDIA's packages for Python; raises MissingError."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(root) / "include" for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if root]
    places += [Path(place) / "cu13" / "include" for place in (spec.submodule_search_locations or () if spec else ())]
    for place in places:
        if all((place / header).is_file() for header in ("cuda.h", "cudaProfiler.h", "cuda_runtime_api.h")):
            return place
    raise MissingError(
        "cuda.h, cudaProfiler.h and cuda_runtime_api.h were not found together: install a CUDA toolkit in "
        "/usr/local/cuda or set CUDA_HOME, or pip install nvidia-cuda-runtime nvidia-cuda-profiler-api"
    )


def pycuda_folder() -> Path:
    """Where PyCUDA is kept, for this Python."""
    name = f"pycuda-{PYCUDA}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    return platformdirs.user_cache_path("vocabseg") / "fake-driver" / name


def build_pycuda() -> Path:
    """Build PyCUDA unless it is kept already, in a few minutes, and return its folder."""
    target = pycuda_folder()
    with _alone(target) as name:
        if target.is_dir():
            return target
        scratch = Path(name)
        (scratch / "cuda" / "lib64" / "stubs").mkdir(parents=True)
        (scratch / "cuda" / "include").symlink_to(cuda_headers())
        driver = scratch / "cuda" / "lib64" / "stubs" / "libcuda.so"
        _compile(["-shared", "-x", "c", os.devnull, "-Wl,-soname,libcuda.so.1", "-o", str(driver)])
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        _run([*pip, "install", "--target", f"{name}/tools", "setuptools", "wheel"])
        paths = os.pathsep.join([f"{name}/tools", *sys.path])
        environment = {**os.environ, "PYTHONPATH": paths, "CUDA_HOME": f"{name}/cuda", "PIP_TARGET": f"{name}/site"}
        environment["LDFLAGS"] = "-Wl,--no-as-needed"  # the libcuda.so to link with is empty
        command = [*pip, "download", "--no-deps", "--no-build-isolation", "--no-binary=pycuda", f"--dest={name}/wheels"]
        _run([*command, f"pycuda=={PYCUDA}"], environment)
        builder = HERE.parents[1] / "tools" / "build_pycuda.py"
        _run([sys.executable, str(builder), f"{name}/wheels", f"{name}/sources"], environment)
        os.replace(scratch / "site", target)
    return target


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[str]:
    """A scratch folder beside `target`, where one process at a time makes it."""
    import fcntl  # not on Windows, where there is no fake driver

    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        target.with_name(f"{target.name}.lock").open("w") as lock,
        tempfile.TemporaryDirectory(dir=target.parent) as name,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield name


def onnxruntime_folder() -> Path:
    """Where the ONNX Runtime for GPUs is kept, beside which the one of the environment stays as it is."""
    return pycuda_folder().with_name(f"onnxruntime-gpu-{ONNXRUNTIME}-{sys.implementation.cache_tag}")


def fetch_onnxruntime() -> Path:
    """Install it there unless it is kept already, without NVIDIA's libraries, and return its folder."""
    target = onnxruntime_folder()
    with _alone(target) as name:
        if not target.is_dir():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", f"{name}/site"]
            _run([*pip, f"onnxruntime-gpu=={ONNXRUNTIME}"])
            os.replace(f"{name}/site", target)
    return target


def find_pycuda() -> Path:
    """The folder that has the package pycuda; raises MissingError."""
    spec = importlib.util.find_spec("pycuda")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parents[1]
    if not pycuda_folder().is_dir():
        raise MissingError("PyCUDA was not built yet: python -m tests.fake_driver")
    return pycuda_folder()


@cache
def build_fakes() -> Path:
    """The folder with the fake libraries, for LD_LIBRARY_PATH; raises MissingError."""
    if compiler() is None:
        raise MissingError("there is no C++ compiler: install g++")
    headers, pycuda = cuda_headers(), find_pycuda()
    users = [next((pycuda / "pycuda").glob("_driver*.so")), onnxruntime_folder() / PROVIDER]
    users = [user for user in users if user.is_file()]
    digest = hashlib.sha256(
        repr((FLAGS, str(headers), [(str(user), user.stat().st_mtime_ns) for user in users])).encode()
    )
    for path in sorted(HERE.glob("*.*")):
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"vocabseg-fake-driver-{os.getuid() if hasattr(os, 'getuid') else 0}"
    target = folder / digest.hexdigest()[:24]
    if target.is_dir():
        return target
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name) / "fakes"
        scratch.mkdir()
        for library, sources in FAKES.items():
            if library == "libcuda.so.1" or len(users) > 1:
                _build(scratch / library, sources, headers, users)
        if not target.is_dir():
            os.replace(scratch, target)
    return target


def environment(onnxruntime: bool) -> dict[str, str]:
    """What a process needs to run over the fakes, beyond what this one has; raises MissingError."""
    if onnxruntime and not onnxruntime_folder().is_dir():
        raise MissingError("ONNX Runtime for GPUs was not fetched yet: python -m tests.fake_driver --onnxruntime")
    paths = {
        "LD_LIBRARY_PATH": [build_fakes()],
        "PYTHONPATH": [find_pycuda(), *([onnxruntime_folder()] if onnxruntime else [])],
    }
    joined = {
        name: os.pathsep.join(filter(None, [*map(str, own), os.environ.get(name)])) for name, own in paths.items()
    }
    return {**joined, KERNELS: emulation().library._name}


def _build(target: Path, sources: tuple[str, ...], headers: Path, users: list[Path]) -> None:
    """A library that has all that its users need; what the sources do not define fails as "operation not supported"."""
    options = [*FLAGS, f"-I{headers}", f"-Wl,-soname,{target.name}", *(str(HERE / source) for source in sources)]
    libraries, stubs = ["-ldl"], target.parent / "stubs.c"
    if target.name != "libcuda.so.1":
        (target.parent / "version").write_text(f"{target.name} {{ global: *; }};\n")
        options.append(f"-Wl,--version-script={target.parent}/version")
        libraries += [f"-L{target.parent}", "-l:libcuda.so.1"]
    _compile([*options, *libraries, "-o", str(target)])
    there = {symbol.split("@")[0] for symbol in _symbols("--defined-only", target)}
    needed = {symbol for user in users for symbol in _symbols("--undefined-only", user)}
    own = {name for name, _, version in (symbol.partition("@") for symbol in needed) if version == target.name}
    if target.name == "libcuda.so.1":
        own = {symbol for symbol in needed if re.match("cu[A-Z][A-Za-z0-9_]*$", symbol)}
    if own - there:
        stubs.write_text("".join(f"int {name}() {{ return 801; }}\n" for name in sorted(own - there)))
        _compile(["-x", "c", "-c", "-fPIC", str(stubs), "-o", f"{stubs}.o"])
        _compile([*options, f"{stubs}.o", *libraries, "-o", str(target)])


def _symbols(which: str, library: Path) -> set[str]:
    run = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1].replace("@@", "@") for line in run.stdout.splitlines()}


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(run.stdout + run.stderr)[-4000:]}")


def _compile(arguments: list[str]) -> None:
    run = subprocess.run([compiler() or "g++", *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the fake driver does not compile:\n{run.stderr[:4000]}")
