"""The fused image operations: a readable NumPy specification and a host extension with the same functions."""

import importlib
from types import ModuleType

from vocabseg.runtime.errors import EngineError

NAMES = ("host", "reference")


def load_kernels(name: str | None = None) -> ModuleType:
    """The kernels module "host" (the default) or "reference".

    Raises EngineError for another name, and where the host extension is not installed or cannot be loaded.
    """
    chosen = "host" if name is None else name
    if chosen not in NAMES:
        raise EngineError(f"no kernels named {chosen!r}: choose one of {', '.join(NAMES)}")
    try:
        return importlib.import_module(f"vocabseg.runtime.kernels.{chosen}")
    except ImportError as error:
        raise EngineError(
            f"the kernels {chosen!r} cannot be loaded ({error}): reinstall vocabseg with a C++ compiler present, "
            'or use the slow kernels "reference"'
        ) from error
