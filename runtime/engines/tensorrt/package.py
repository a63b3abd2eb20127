"""The Python packages of TensorRT and of TensorRT for RTX, imported when they are first used.

Their bindings are generated from the same source, so the code around them is the same for both, and one process may
load both.
"""

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vocabseg.runtime.bundle.plans import TITLES, PackageInfo, version_numbers
from vocabseg.runtime.errors import EngineError

if TYPE_CHECKING:
    import tensorrt


class Family(NamedTuple):
    """Packages by which one of NVIDIA's two libraries can be installed: module -> kind, in the order they are tried.

    The kind "full" builds and runs; "lean" runs version-compatible plans; "dispatch" loads a lean runtime.
    """

    modules: dict[str, str]
    oldest: tuple[int, int]
    install: str


FAMILIES = {
    "tensorrt": Family(
        {
            "tensorrt": "full",
            "tensorrt_lean": "lean",
            "tensorrt_lean_bindings": "lean",
            "tensorrt_dispatch": "dispatch",
            "tensorrt_dispatch_bindings": "dispatch",
        },
        (10, 13),
        "pip install tensorrt --extra-index-url https://pypi.nvidia.com (or NVIDIA's archive), or for running alone "
        "pip install tensorrt_lean_cu13_bindings tensorrt_lean_cu13_libs",
    ),
    "tensorrt-rtx": Family(
        {"tensorrt_rtx": "full", "tensorrt_rtx_bindings": "full"},
        (1, 7),
        "pip install 'vocabseg[rtx]'",
    ),
}


class Bindings(Protocol):
    """What this project uses of a package; both have it all."""

    Builder: "type[tensorrt.Builder]"
    BuilderFlag: "type[tensorrt.BuilderFlag]"
    ExecutionContextAllocationStrategy: "type[tensorrt.ExecutionContextAllocationStrategy]"
    HardwareCompatibilityLevel: "type[tensorrt.HardwareCompatibilityLevel]"
    ILogger: "type[tensorrt.ILogger]"
    IProgressMonitor: "type[tensorrt.IProgressMonitor]"
    LayerType: "type[tensorrt.LayerType]"
    MemoryPoolType: "type[tensorrt.MemoryPoolType]"
    NetworkDefinitionCreationFlag: "type[tensorrt.NetworkDefinitionCreationFlag]"
    OnnxParser: "type[tensorrt.OnnxParser]"
    PreviewFeature: "type[tensorrt.PreviewFeature]"
    ProfilingVerbosity: "type[tensorrt.ProfilingVerbosity]"
    Runtime: "type[tensorrt.Runtime]"
    TensorIOMode: "type[tensorrt.TensorIOMode]"

    def __hash__(self) -> int: ...


class Package(NamedTuple):
    """An installed package: what it is, and its module; `rtx` is the module once more, where it is TensorRT for RTX."""

    info: PackageInfo
    trt: Bindings
    rtx: Any = None


def load_package(engine: str = "tensorrt") -> Package:
    """The first package of "tensorrt" or "tensorrt-rtx" that can be imported.

    Raises EngineError that says why none can, or that the one installed is too old.
    """
    family, reasons = FAMILIES[engine], []
    for name, kind in family.modules.items():
        if find_spec(name) is None:
            continue
        try:
            module: Any = importlib.import_module(name)
        except (ImportError, OSError) as error:  # its libraries are missing, or those of CUDA
            reasons.append(f"{name} cannot be imported ({' '.join(str(error).split())})")
            continue
        if not hasattr(module, "Runtime"):
            reasons.append(f"{name} is an empty placeholder")
            continue
        version = str(module.__version__)
        if version_numbers(version)[:2] < family.oldest:
            oldest = ".".join(map(str, family.oldest))
            raise EngineError(f"{TITLES[engine]} {version} is too old: use {oldest} or newer ({family.install})")
        return Package(PackageInfo(engine, kind, version), module, module if engine == "tensorrt-rtx" else None)
    why = "".join(f"; {reason}" for reason in reasons)
    raise EngineError(f"{TITLES[engine]} is not installed{why}: {family.install}")


def installed(engine: str = "tensorrt") -> bool:
    """Whether one of the packages is installed; none is imported."""
    return any(find_spec(name) is not None for name in FAMILIES[engine].modules)


def require_builder(engine: str = "tensorrt") -> Package:
    """As `load_package`; raises EngineError where the package can run plans but not build them."""
    package = load_package(engine)
    if package.info.kind != "full":
        install = FAMILIES[engine].install.split(",")[0]
        raise EngineError(f"TensorRT's {package.info.kind} runtime cannot build plans: {install}")
    return package
