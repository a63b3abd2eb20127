"""Packages that only some commands need."""

from importlib.util import find_spec

from vocabseg.runtime.errors import EngineError


def require(modules: tuple[str, ...], purpose: str, extras: str) -> None:
    """Raise EngineError for the first module that is not installed: what needs it, and how to install it."""
    for module in modules:
        if find_spec(module) is None:
            raise EngineError(f"{purpose} needs the package {module}: pip install 'vocabseg[{extras}]'")
