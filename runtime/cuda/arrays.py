"""Arrays in device memory, including those of other libraries, which are used without a copy."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.runtime.cuda import dlpack
from vocabseg.runtime.errors import EngineError

if TYPE_CHECKING:
    from vocabseg.runtime.cuda.device import Device
    from vocabseg.runtime.cuda.streams import Stream


class DeviceArray:
    """A C-contiguous array on a device; slices of the first axis and reshaped arrays share its memory.

    Attributes: device, shape, dtype, nbytes, pointer (address of the first element), owner (keeps the memory alive).
    """

    __slots__ = ("__weakref__", "device", "dtype", "nbytes", "owner", "pointer", "shape")

    def __init__(self, device: "Device", shape: Sequence[int], dtype: Any, pointer: int, owner: object):
        self.device = device
        self.shape = tuple(map(int, shape))
        self.dtype = np.dtype(dtype)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.pointer = pointer
        self.owner = owner

    @staticmethod
    def of(array: Any, device: "Device", stream: "Stream | None" = None) -> "DeviceArray":
        """Wrap another library's array on `device` without a copy, by __cuda_array_interface__ or __dlpack__.

        Pending work of that library is waited for: by `stream` if the library supports it, else by the host.
        Raises EngineError for an array that is elsewhere, or not C-contiguous.
        """
        if isinstance(array, DeviceArray):
            _check_device(array.device.ordinal, device)
            return array
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is not None:
            return _from_interface(interface, array, device)
        if hasattr(array, "__dlpack__"):
            kind, ordinal = array.__dlpack_device__()
            if int(kind) not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
                raise EngineError(f"the array is not on a GPU (DLPack device type {int(kind)}): move it to {device!r}")
            _check_device(int(ordinal), device)
            with device.activate():
                shape, dtype, pointer, owner = dlpack.take(array.__dlpack__(stream=stream.handle if stream else None))
            if stream is None:
                device.synchronize()
            return DeviceArray(device, shape, dtype, pointer, owner)
        raise EngineError(f"a {type(array).__name__} is not an array on a GPU: it has no __cuda_array_interface__")

    @staticmethod
    def offered_by(array: Any) -> bool:
        """Whether `array` is on a GPU, so that `of` may accept it."""
        if hasattr(array, "__cuda_array_interface__"):
            return True
        if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
            return False
        return int(array.__dlpack_device__()[0]) in (dlpack.CUDA, dlpack.CUDA_MANAGED)

    def __repr__(self) -> str:
        return f"DeviceArray({'x'.join(map(str, self.shape))} {self.dtype} on cuda:{self.device.ordinal})"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> "DeviceArray":
        """Rows of the first axis."""
        first, last, step = part.indices(self.shape[0])
        if step != 1:
            raise ValueError("only consecutive rows can be selected")
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        shape = (max(last - first, 0), *self.shape[1:])
        return DeviceArray(self.device, shape, self.dtype, self.pointer + first * row, self.owner)

    def reshape(self, *shape: int) -> "DeviceArray":
        """The same memory in another shape of the same size."""
        if math.prod(shape) * self.dtype.itemsize != self.nbytes:
            raise ValueError(f"an array of shape {self.shape} cannot be reshaped to {shape}")
        return DeviceArray(self.device, shape, self.dtype, self.pointer, self.owner)

    def to_host(self, stream: "Stream | None" = None) -> np.ndarray:
        """A copy on the host, made after all work on `stream`, or on the whole device if None."""
        if stream is None:
            self.device.synchronize()
            stream = self.device.stream()
        host = np.empty(self.shape, self.dtype)
        stream.download(host, self)
        stream.synchronize()
        return host

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # Version 3; no stream: the consumer must have waited for the work that computes the array.
        data = (self.pointer, False)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "strides": None, "version": 3}

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        return dlpack.give(self.pointer, self.shape, self.dtype, dlpack.CUDA, self.device.ordinal, self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device.ordinal


def _from_interface(interface: dict[str, Any], owner: Any, device: "Device") -> DeviceArray:
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != _strides(shape, dtype.itemsize) and 0 not in shape:
        raise EngineError(f"the array of shape {shape} on the GPU is not C-contiguous: make it so first")
    place = getattr(owner, "device", None)  # torch and CuPy name the device; the interface does not
    ordinal = getattr(place, "index", getattr(place, "id", None))
    if isinstance(ordinal, int):
        _check_device(ordinal, device)
    if interface.get("stream") is not None or interface.get("version", 0) < 3:
        device.synchronize()  # PyCUDA cannot wait for a foreign stream
    return DeviceArray(device, shape, dtype, int(interface["data"][0]), owner)


def _check_device(ordinal: int, device: "Device") -> None:
    if ordinal != device.ordinal:
        raise EngineError(f"the array is on cuda:{ordinal}, but the model on cuda:{device.ordinal}: move one of them")


def _strides(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    strides = [item]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides)) if shape else ()
