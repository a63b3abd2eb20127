"""An ONNX file's outline, read without onnx: which files its weights are in, and its inputs and outputs.

Only as much of protobuf's wire format as that takes (https://protobuf.dev/programming-guides/encoding). Field numbers
are those of onnx.proto3.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vocabseg.runtime.bundle.manifest import TensorRecord

# Message -> number of a field that may hold external weights -> its message.
_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_INPUT, _OUTPUT = 11, 12
# Of an entry of external data, which is a key and a value.
_KEY, _VALUE, _LOCATION = 1, 2, b"location"
# TensorProto.DataType
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 16: "bfloat16",
}  # fmt: skip

Data = mmap.mmap | bytes


class Outline(NamedTuple):
    """`locations` of external weights as the graph names them; a dimension that is no number is dynamic."""

    locations: frozenset[str]
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]


class _Field(NamedTuple):
    number: int
    value: int  # of a number
    start: int  # of bytes
    stop: int


def read_outline(path: Path) -> Outline:
    """The outline of the graph at `path`; raises ValueError for a file that is none, OSError for a missing one."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError("it is empty") from None
    with data:
        return outline(data)


def outline(data: Data) -> Outline:
    """The outline of a graph in memory; raises ValueError for bytes that are none."""
    graphs = [field for field in _fields(data, 0, len(data)) if field.number == 7]
    found: dict[int, list[TensorRecord]] = {_INPUT: [], _OUTPUT: []}
    for graph in graphs:
        for field in _fields(data, graph.start, graph.stop):
            if field.number in found:
                found[field.number].append(_tensor(data, field))
    return Outline(frozenset(_locations(data)), found[_INPUT], found[_OUTPUT])


def _locations(data: Data) -> Iterator[str]:
    """Every location, in whatever part of the file; a part without that word holds none."""
    waiting = [("model", 0, len(data))]
    while waiting:
        kind, start, stop = waiting.pop()
        if kind == "entry":
            fields = list(_fields(data, start, stop))
            if any(field.number == _KEY and data[field.start : field.stop] == _LOCATION for field in fields):
                yield from (_text(data, field) for field in fields if field.number == _VALUE)
            continue
        parts = _PARTS[kind]
        for field in _fields(data, start, stop):
            if field.number in parts and data.find(_LOCATION, field.start, field.stop) >= 0:
                waiting.append((parts[field.number], field.start, field.stop))


def _tensor(data: Data, field: _Field) -> TensorRecord:
    """ValueInfoProto: name 1, type 2 { tensor 1 { element type 1, shape 2 { dimension 1 } } }."""
    name, dtype = "", 0
    shape: list[int | str] = []
    for part in _fields(data, field.start, field.stop):
        if part.number == 1:
            name = _text(data, part)
        elif part.number == 2:
            for tensor in _children(data, part, 1):
                for entry in _fields(data, tensor.start, tensor.stop):
                    if entry.number == 1:
                        dtype = entry.value
                    elif entry.number == 2:
                        shape += [_dimension(data, size) for size in _children(data, entry, 1)]
    return TensorRecord(name=name, dtype=_DTYPES.get(dtype, f"type {dtype}"), shape=shape)


def _dimension(data: Data, field: _Field) -> int | str:
    """Its number 1 or its name 2."""
    size: int | str = ""
    for part in _fields(data, field.start, field.stop):
        size = part.value if part.number == 1 else _text(data, part) if part.number == 2 else size
    return size


def _children(data: Data, field: _Field, number: int) -> list[_Field]:
    return [part for part in _fields(data, field.start, field.stop) if part.number == number]


def _text(data: Data, field: _Field) -> str:
    return data[field.start : field.stop].decode("utf-8", "backslashreplace")


def _fields(data: Data, position: int, stop: int) -> Iterator[_Field]:
    """The fields of one message."""
    while position < stop:
        tag, position = _varint(data, position, stop)
        kind, value, start = tag & 7, 0, position
        if kind == 0:
            value, position = _varint(data, position, stop)
            start = position
        elif kind == 2:
            size, start = _varint(data, position, stop)
            position = start + size
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"it has a field of kind {kind} at byte {position}")
        if position > stop:
            raise ValueError(f"it is cut off at byte {stop}")
        yield _Field(tag >> 3, value, start, position)


def _varint(data: Data, position: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while position < stop and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError(f"it has no number at byte {position}")
