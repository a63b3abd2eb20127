"""DLPack capsules, exported and imported through ctypes (dlpack.h 0.8: the unversioned capsule, which all read)."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vocabseg.runtime.errors import EngineError

CPU, CUDA, CUDA_MANAGED = 1, 2, 13  # DLDeviceType

_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode by NumPy's kind
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

_api = ctypes.pythonapi
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    prototype = ctypes.PYFUNCTYPE(result, *arguments)
    return prototype((name, _api))


_new = _function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_is_valid = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _function("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
# The destructor gets the capsule while it is being freed and must not take a reference, so it stays an address.
_is_valid_at = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_pointer_at = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)

# What exported capsules refer to, until their deleter is called: address of the structure -> everything it points to.
_given: dict[int, tuple[Any, ...]] = {}


@_Deleter
def _delete(managed: Any) -> None:
    _given.pop(ctypes.addressof(managed.contents), None)


@_Destructor
def _destroy(capsule: int) -> None:
    """A capsule that was never consumed frees its memory itself."""
    if _is_valid_at(capsule, _NAME):
        _given.pop(_pointer_at(capsule, _NAME), None)


def give(pointer: int, shape: Sequence[int], dtype: np.dtype, device_type: int, device_id: int, owner: object) -> Any:
    """A capsule for C-contiguous memory at `pointer`, which `owner` keeps alive."""
    managed = _Managed()
    lengths = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    managed.tensor = _Tensor(
        pointer, device_type, device_id, len(shape), _CODES[dtype.kind], 8 * dtype.itemsize, 1, lengths, None, 0
    )
    managed.deleter = _delete
    address = ctypes.addressof(managed)
    _given[address] = (managed, lengths, owner)
    return _new(address, _NAME, ctypes.cast(_destroy, ctypes.c_void_p))


def take(capsule: Any) -> tuple[tuple[int, ...], np.dtype, int, object]:
    """Consume a capsule; returns shape, dtype, pointer and owner of its memory.

    The memory lives as long as the owner. Raises EngineError if it is not C-contiguous or has no NumPy dtype.
    """
    if not _is_valid(capsule, _NAME):
        raise EngineError("the DLPack capsule has another version or was already consumed: give the array itself")
    managed = _Managed.from_address(_pointer(capsule, _NAME))
    tensor = managed.tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    kinds = {code: kind for kind, code in _CODES.items()}
    if tensor.code not in kinds or tensor.lanes != 1 or tensor.bits % 8:
        raise EngineError(f"the array's DLPack type is unknown (code {tensor.code}, {tensor.bits} bits): convert it")
    dtype = np.dtype(bool) if kinds[tensor.code] == "b" else np.dtype(f"{kinds[tensor.code]}{tensor.bits // 8}")
    if tensor.strides and 0 not in shape:
        expected = 1
        for size, stride in zip(
            reversed(shape), (tensor.strides[i] for i in reversed(range(tensor.ndim))), strict=True
        ):
            if size != 1 and stride != expected:
                raise EngineError(f"the array of shape {shape} on the GPU is not C-contiguous: make it so first")
            expected *= size
    pointer = (tensor.data or 0) + tensor.byte_offset
    owner = _Owner(managed)
    _rename(capsule, _USED)
    return shape, dtype, pointer, owner


class _Owner:
    """Calls the deleter of another library's memory once nothing refers to it any more."""

    def __init__(self, managed: _Managed):
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.deleter:
            self._managed.deleter(ctypes.byref(self._managed))
