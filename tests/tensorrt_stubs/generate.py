"""The genuine TensorRT bindings, from PyPI, made importable without TensorRT, and type stubs made from them.

Only bindings (1.2 MB) and the lean runtime are fetched, never TensorRT itself. Their licence is NVIDIA's own, so
nothing of them is part of this repository: modules and stubs lie in the folder given, and are made again where it is
empty.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")


class Unavailable(Exception):
    """Why the bindings cannot be had on this machine."""


class Bindings(NamedTuple):
    """One version of the bindings: where its modules, shim libraries and stubs lie."""

    requirement: str
    major: int
    folder: Path
    name: str = "tensorrt"  # or "tensorrt_rtx", whose interface is that of TensorRT 11

    @property
    def modules(self) -> Path:
        """What goes on PYTHONPATH."""
        return self.folder / "modules"

    @property
    def libraries(self) -> Path:
        """What goes on LD_LIBRARY_PATH."""
        return self.folder / "libraries"

    @property
    def typings(self) -> Path:
        """What goes on MYPYPATH: a package `tensorrt` of stubs."""
        return self.folder / "typings"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A Python process that can import `tensorrt_bindings`, or `tensorrt_rtx_bindings`."""
        paths = os.pathsep.join([str(self.modules), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": paths, "LD_LIBRARY_PATH": str(self.libraries)}
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=HERE)


VERSIONS = {
    "11.4": ("tensorrt-cu13-bindings==11.4.*", 11),
    "10.13": ("tensorrt-cu12-bindings==10.13.*", 10),
    "rtx-1.7": ("tensorrt-rtx-cu13-bindings==1.7.1.116 tensorrt-rtx-cu13-libs==1.7.1.116", 11),
}


LEAN = ("tensorrt-lean-cu13-bindings==11.4.*", "tensorrt-lean-cu13-libs==11.4.*")


def get_lean(cache: Path) -> Bindings:
    """The genuine lean runtime with its library (45 MB), in `cache`; raises Unavailable."""
    bindings = Bindings(" ".join(LEAN), 11, cache / f"tensorrt-lean-cp{sys.version_info[0]}{sys.version_info[1]}")
    done = bindings.folder / "done"
    if not done.is_file():
        _fetch(bindings)
        done.touch()
    return bindings


def get_bindings(version: str, cache: Path) -> Bindings:
    """The bindings of a version of `VERSIONS`, made in `cache` when they are not there; raises Unavailable."""
    requirement, major = VERSIONS[version]
    folder = cache / f"tensorrt-{version}-cp{sys.version_info[0]}{sys.version_info[1]}"
    bindings = Bindings(requirement, major, folder, "tensorrt_rtx" if version.startswith("rtx") else "tensorrt")
    done = bindings.folder / "done"
    if not done.is_file():
        _fetch(bindings)
        if bindings.name == "tensorrt":  # that for RTX comes with its library
            _compile_shim(bindings)
        _make_stubs(bindings)
        done.touch()
    return bindings


def _fetch(bindings: Bindings) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(bindings.folder), *bindings.requirement.split()]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(bindings.folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = ([line for line in result.stderr.splitlines() if line.strip()] or ["no wheel came"])[-1]
        raise Unavailable(f"{bindings.requirement} cannot be had from PyPI: {reason}")
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(bindings.modules)
        path.unlink()


def _compile_shim(bindings: Bindings) -> None:
    bindings.libraries.mkdir(exist_ok=True)
    compiler = os.environ.get("CC", "cc")
    for library in LIBRARIES:
        target = bindings.libraries / f"lib{library}.so.{bindings.major}"
        command = [compiler, "-shared", "-fPIC", "-o", str(target), str(HERE / "shim.c")]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"the shim does not compile with {compiler!r}: {error}") from error


def _make_stubs(bindings: Bindings) -> None:
    raw = bindings.folder / "raw"
    inner = bindings.name
    name = f"{inner}_bindings"
    result = bindings.run("-m", "pybind11_stubgen", name, "-o", str(raw), "--ignore-all-errors")
    source = raw / name
    if not (source / f"{inner}.pyi").is_file():
        raise Unavailable(f"pybind11-stubgen made no stubs: {result.stderr.strip().splitlines()[-1:]}")
    target = bindings.typings / "tensorrt"
    (target / "plugin").mkdir(parents=True, exist_ok=True)
    (target / "plugin" / "__init__.pyi").write_text("")
    (target / "__init__.pyi").write_text(_common_fixes((source / "__init__.pyi").read_text(), inner))
    (target / "tensorrt.pyi").write_text(_module_fixes(_common_fixes((source / f"{inner}.pyi").read_text(), inner)))
    if inner == "tensorrt_rtx":  # under its own name too
        (bindings.typings / inner).mkdir(exist_ok=True)
        (bindings.typings / inner / "__init__.pyi").write_text("from tensorrt.tensorrt import *\n")


def _common_fixes(text: str, inner: str) -> str:
    text = text.replace(f"{inner}_bindings.{inner}", "tensorrt.tensorrt").replace(f"{inner}_bindings", "tensorrt")
    text = text.replace(f".{inner} import", ".tensorrt import")
    # The module exports a DataType called `bool`, which shadows the builtin in every annotation behind it.
    text = re.sub(r"(->\s*|: |\[|, |\| )bool\b(?!\s*=)", r"\1builtins.bool", text)
    text = re.sub(r"^builtins\.bool: ", "bool: ", text, flags=re.M)
    text = re.sub(r"^bool: builtins", "bool: ", text, flags=re.M)
    # pybind11 converts any sequence of integers to Dims.
    shapes = "min|opt|max|shape|stride|start|dims|window_size|kernel_shape|pre_padding|post_padding|dimensions"
    text = re.sub(rf"((?:{shapes}): )Dims\b", r"\1Dims | collections.abc.Sequence[int]", text)
    imports = "from __future__ import annotations\nimport builtins\nimport collections.abc\n"
    return text.replace("from __future__ import annotations\n", imports, 1)


def _module_fixes(text: str) -> str:
    text = re.sub(r"= <[^>\n]*>", "= ...", text)  # defaults written as representations
    text = re.sub(r"\(self(.*?), (in|from|lambda): ", r"(self\1, \2_: ", text)  # keywords as names of parameters
    text = "\n".join(_defaults_last(line) for line in text.split("\n"))
    members = {
        "IHostMemory": "def __buffer__(self, flags: int, /) -> memoryview: ...",
        "Dims": "def __iter__(self) -> collections.abc.Iterator[int]: ...",
    }
    for name, member in members.items():
        text = text.replace(f"class {name}:", f"class {name}:\n    {member}", 1)
    # Trampolines are called with plain integers, and with None where a phase has no parent.
    for method in ("phase_start", "step_complete"):
        text = re.sub(rf"(def {method}\(self.*?: )typing\.SupportsInt\)", r"\1int)", text)
    text = text.replace("parent_phase: str,", "parent_phase: str | None,")
    # What the documentation says returns None on failure.
    for method, result in (
        ("build_serialized_network", "IHostMemory"),
        ("deserialize_cuda_engine", "ICudaEngine"),
        ("create_execution_context", "IExecutionContext"),
        ("load_runtime", "Runtime"),
    ):
        text = re.sub(rf"(def {method}\(.*\) -> {result}):", r"\1 | None:", text)
    return text


def _defaults_last(line: str) -> str:
    """A `def` line in which no parameter without a default follows one with a default."""
    match = re.match(r"(\s*def \w+\()(.*)(\).*)", line)
    if match is None:
        return line
    parameters = re.split(r", (?=\w+(?::|\s*=))", match.group(2))
    seen = False
    for index, parameter in enumerate(parameters):
        if "=" in parameter:
            seen = True
        elif seen and not parameter.startswith("*"):
            parameters[index] = f"{parameter} = ..."
    return match.group(1) + ", ".join(parameters) + match.group(3)


if __name__ == "__main__":
    for wanted in VERSIONS:
        print(get_bindings(wanted, Path(sys.argv[1])).typings)
