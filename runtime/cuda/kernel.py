"""Loaded kernels and their launches."""

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.driver import checked
from vocabseg.runtime.cuda.memory import Owned

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.device import Device

# More shared memory than this must be requested (CUDA C++ Programming Guide, compute capabilities).
DEFAULT_SHARED_BYTES = 48 * 1024


class Module(Owned):
    """Loaded kernels."""

    __slots__ = ()

    def function(self, name: str) -> "Function":
        """A kernel by its name; raises EngineError if there is none."""
        with self.device.activate():
            return Function(self.device, name, checked(self.raw.get_function, name))


class Function:
    """One kernel."""

    def __init__(self, device: "Device", name: str, function: Any):
        self.device = device
        self.name = name
        self._function = function
        self._shared_bytes = DEFAULT_SHARED_BYTES

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        stream: Any,
        shared_bytes: int = 0,
    ) -> None:
        """Launch on `stream`: blocks, threads per block, and arguments as `pack_arguments` takes them."""
        if shared_bytes > self._shared_bytes:
            attribute = self.device.driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.device.call(self._function.set_attribute, attribute, shared_bytes)
            self._shared_bytes = shared_bytes
        # What all of PyCUDA's calls end in; before that they pack arguments, without the alignment of structs by value.
        launch, data = self._function._launch_kernel, pack_arguments(arguments)
        stream.submit(launch, (*grid, 1, 1)[:3], (*block, 1, 1)[:3], data, shared_bytes)


def pack_arguments(arguments: Sequence[Any]) -> bytes:
    """A kernel's arguments as laid out in its parameter space, each aligned to its type.

    Arguments are DeviceArray, None (a null pointer), NumPy scalars, and structs by value: structured np.void, aligned
    as its dtype, or bytes, aligned to their `alignment`, or else to 8. Raises TypeError for others: a Python number has
    no size.
    """
    data = bytearray()
    for place, argument in enumerate(arguments):
        if argument is None or isinstance(argument, DeviceArray):
            item, alignment = struct.pack("=Q", 0 if argument is None else argument.pointer), 8
        elif isinstance(argument, bytes):
            item, alignment = argument, getattr(argument, "alignment", 8)
        elif isinstance(argument, np.void):
            item, alignment = argument.tobytes(), argument.dtype.alignment if argument.dtype.isalignedstruct else 8
        elif isinstance(argument, (np.number, np.bool_)):
            item, alignment = argument.tobytes(), argument.dtype.alignment
        else:
            raise TypeError(f"argument {place} is a {type(argument).__name__}: give a device array or a NumPy scalar")
        data += bytes(-len(data) % alignment) + item
    return bytes(data)
