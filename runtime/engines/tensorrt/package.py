"""TensorRT's Python package, whichever of its kinds is installed, imported when it is first used."""

import importlib
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from vocabseg.runtime.bundle.plans import PackageInfo, version_numbers
from vocabseg.runtime.errors import EngineError

# The full package, which also builds; the lean runtime, which runs version-compatible plans; the dispatch runtime,
# which loads a lean one. Their runtime classes are the same.
KINDS = {
    "tensorrt": "full",
    "tensorrt_lean": "lean",
    "tensorrt_lean_bindings": "lean",
    "tensorrt_dispatch": "dispatch",
    "tensorrt_dispatch_bindings": "dispatch",
}

OLDEST = (10, 13)
HOW_TO_GET = (
    "pip install tensorrt --extra-index-url https://pypi.nvidia.com (or NVIDIA's archive), or for running alone "
    "pip install tensorrt_lean_cu13_bindings tensorrt_lean_cu13_libs"
)

if TYPE_CHECKING:
    import tensorrt

    trt = tensorrt
else:

    class _Package:
        """Stands for the package: `trt.Runtime` imports it."""

        def __getattr__(self, name: str) -> object:
            return getattr(load_package()[0], name)

    trt = _Package()


def load_package() -> tuple[ModuleType, str]:
    """The first of the packages that can be imported, and its kind; raises EngineError that says why none can."""
    reasons = []
    for name, kind in KINDS.items():
        if find_spec(name) is None:
            continue
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # its libraries are missing, or those of CUDA
            reasons.append(f"{name} cannot be imported ({' '.join(str(error).split())})")
            continue
        if hasattr(module, "Runtime"):
            return module, kind
        reasons.append(f"{name} is an empty placeholder")
    raise EngineError(f"TensorRT is not installed{''.join(f'; {reason}' for reason in reasons)}: {HOW_TO_GET}")


def installed() -> bool:
    """Whether one of the packages is there; it is not imported."""
    return any(find_spec(name) is not None for name in KINDS)


def package_info() -> PackageInfo:
    """Kind and version of the package; raises EngineError where there is none, or one that is too old."""
    module, kind = load_package()
    version = str(module.__version__)
    if version_numbers(version)[:2] < OLDEST:
        raise EngineError(f"TensorRT {version} is too old: use {'.'.join(map(str, OLDEST))} or newer ({HOW_TO_GET})")
    return PackageInfo(kind, version)


def require_builder() -> PackageInfo:
    """As `package_info`; raises EngineError where the package can run plans but not build them."""
    info = package_info()
    if info.kind != "full":
        raise EngineError(f"TensorRT's {info.kind} runtime cannot build plans: {HOW_TO_GET.split(',')[0]}")
    return info
