"""The fused image operations: a readable NumPy specification, the host's extension and the CUDA kernels."""

import importlib
from types import ModuleType

from vocabseg.runtime.errors import EngineError

MODULES = {"host": "vocabseg.runtime.kernels.host.face", "reference": "vocabseg.runtime.kernels.reference"}


def load_kernels(name: str | None = None) -> ModuleType:
    """The kernels module "host" (the default) or "reference".

    Raises EngineError for another name, and if the host extension is not installed or cannot be loaded.
    """
    chosen = "host" if name is None else name
    if chosen not in MODULES:
        raise EngineError(f"no kernels named {chosen!r}: choose one of {', '.join(MODULES)}")
    try:
        return importlib.import_module(MODULES[chosen])
    except ImportError as error:
        raise EngineError(
            f"the kernels {chosen!r} cannot be loaded ({error}): reinstall vocabseg with a C++ compiler present, "
            'or use the slow kernels "reference"'
        ) from error
