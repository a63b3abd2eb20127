"""PyCUDA objects that must be freed while their device's context is current.

Without a current context PyCUDA cannot free them: it warns, and for pool memory it aborts the process. So memory,
streams and modules are owned by objects that make the context current first.
"""

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.device import Device


class Owned:
    """Owns `raw`, a PyCUDA object, and frees it when no longer referenced; at the end of the process it is leaked."""

    __slots__ = ("__weakref__", "device", "raw")

    def __init__(self, device: "Device", raw: Any):
        self.device, self.raw = device, raw

    # What is needed is bound here: at the end of the process, modules are already empty.
    def __del__(self, _keep: Any = ctypes.pythonapi.Py_IncRef, _object: Any = ctypes.py_object) -> None:
        if not hasattr(self, "raw"):
            return
        if self.device.closed:
            _keep(_object(self.raw))
            return
        if self.device.active:
            del self.raw
            return
        with self.device.activate():
            del self.raw


class PinnedMemory(Owned):
    """Page-locked memory; the base of arrays that use it."""

    __slots__ = ()

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return dict(self.raw.__array_interface__)
