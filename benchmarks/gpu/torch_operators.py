"""ONNX's operators by PyTorch, as far as a bundle's graphs have them; each takes its inputs and its attributes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F

Attributes = Mapping[str, Any]
# An omitted optional input is None.
Operator = Callable[[Sequence[Any], Attributes], Any]

DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


def numbers(tensor: Any) -> list[int]:
    """A small tensor of integers as a list."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def _given(inputs: Sequence[Any], place: int) -> Any:
    """An optional input, None if it is not there."""
    return inputs[place] if place < len(inputs) else None


def _reshape(inputs: Sequence[Any], a: Attributes) -> Any:
    wanted = numbers(inputs[1])
    if not a.get("allowzero", 0):
        wanted = [inputs[0].shape[k] if size == 0 else size for k, size in enumerate(wanted)]
    return inputs[0].reshape(wanted)


def _padded(x: Any, pads: Sequence[int], fill: float = 0.0) -> tuple[Any, tuple[int, ...]]:
    """x and the padding that convolution or pooling can do themselves: the same on both sides; else x is padded."""
    half = len(pads) // 2
    if list(pads[:half]) == list(pads[half:]):
        return x, tuple(pads[:half])
    sides = [pads[k + side * half] for k in reversed(range(half)) for side in (0, 1)]
    return F.pad(x, sides, value=fill), (0,) * half


def _convolution(inputs: Sequence[Any], a: Attributes) -> Any:
    weight = inputs[1]
    size = weight.dim() - 2
    x, padding = _padded(inputs[0], a.get("pads", [0] * 2 * size))
    strides, dilations = a.get("strides", [1] * size), a.get("dilations", [1] * size)
    run = (F.conv1d, F.conv2d, F.conv3d)[size - 1]
    return run(x, weight, _given(inputs, 2), tuple(strides), padding, tuple(dilations), a.get("group", 1))


def _largest(inputs: Sequence[Any], a: Attributes) -> Any:
    shape = tuple(a["kernel_shape"])
    x, padding = _padded(inputs[0], a.get("pads", [0] * 2 * len(shape)), -torch.inf)
    strides, dilations = a.get("strides", [1] * len(shape)), a.get("dilations", [1] * len(shape))
    return F.max_pool2d(x, shape, tuple(strides), padding, tuple(dilations), bool(a.get("ceil_mode", 0)))


def _average(inputs: Sequence[Any], a: Attributes) -> Any:
    shape, pads = tuple(a["kernel_shape"]), a.get("pads")
    if pads and any(pads):
        raise ValueError(f"AveragePool with pads {list(pads)} is not supported here")
    return F.avg_pool2d(inputs[0], shape, tuple(a.get("strides", [1] * len(shape))), 0, bool(a.get("ceil_mode", 0)))


def _slice(inputs: Sequence[Any], a: Attributes) -> Any:
    x, starts, ends = inputs[0], numbers(inputs[1]), numbers(inputs[2])
    axes = list(range(len(starts))) if _given(inputs, 3) is None else numbers(inputs[3])
    steps = [1] * len(starts) if _given(inputs, 4) is None else numbers(inputs[4])
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise ValueError(f"Slice with step {step} is not supported here")
        x = x[(slice(None),) * (axis % x.dim()) + (slice(start, min(end, x.shape[axis]), step),)]
    return x


def _resize(inputs: Sequence[Any], a: Attributes) -> Any:
    x, scales, sizes = inputs[0], _given(inputs, 2), _given(inputs, 3)
    target = (
        numbers(sizes) if sizes is not None else [int(n * s) for n, s in zip(x.shape, scales.tolist(), strict=True)]
    )
    mode, place = a.get("mode", b"nearest"), a.get("coordinate_transformation_mode", b"half_pixel")
    if (mode, place, a.get("nearest_mode", b"")) == (b"nearest", b"asymmetric", b"floor"):
        return F.interpolate(x, size=tuple(target[2:]), mode="nearest")
    if (mode, place) == (b"linear", b"half_pixel"):
        return F.interpolate(x, size=tuple(target[2:]), mode="bilinear", align_corners=False)
    raise ValueError(f"Resize with mode {mode.decode()} and {place.decode()} is not supported here")


def _split(inputs: Sequence[Any], a: Attributes) -> Any:
    axis, sizes = a.get("axis", 0), _given(inputs, 1)
    if sizes is not None:
        return torch.split(inputs[0], numbers(sizes), axis)
    return torch.split(inputs[0], -(-inputs[0].shape[axis] // a["num_outputs"]), axis)


def _unsqueeze(inputs: Sequence[Any], a: Attributes) -> Any:
    x, axes = inputs[0], numbers(inputs[1])
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(inputs: Sequence[Any], a: Attributes) -> Any:
    axes = _given(inputs, 1)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(numbers(axes)))


def _gather(inputs: Sequence[Any], a: Attributes) -> Any:
    x, index = inputs
    axis = a.get("axis", 0) % x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = torch.index_select(x, axis, index.reshape(-1).to(x.device))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _layer_norm(inputs: Sequence[Any], a: Attributes) -> Any:
    shape = inputs[0].shape[a.get("axis", -1) % inputs[0].dim() :]
    return F.layer_norm(inputs[0], tuple(shape), inputs[1], _given(inputs, 2), a.get("epsilon", 1e-5))


def _reduced(run: Callable[..., Any]) -> Operator:
    def operator(inputs: Sequence[Any], a: Attributes) -> Any:
        axes = _given(inputs, 1)
        chosen = range(inputs[0].dim()) if axes is None or axes.numel() == 0 else numbers(axes)
        return run(inputs[0], dim=tuple(chosen), keepdim=bool(a.get("keepdims", 1)))

    return operator


def _pad(inputs: Sequence[Any], a: Attributes) -> Any:
    x, pads, value = inputs[0], numbers(inputs[1]), _given(inputs, 2)
    if a.get("mode", b"constant") != b"constant":
        raise ValueError(f"Pad with mode {a['mode'].decode()} is not supported here")
    axes = list(range(x.dim())) if _given(inputs, 3) is None else [axis % x.dim() for axis in numbers(inputs[3])]
    flat = [0] * 2 * x.dim()
    for k, axis in enumerate(axes):
        flat[2 * (x.dim() - 1 - axis)], flat[2 * (x.dim() - 1 - axis) + 1] = pads[k], pads[len(axes) + k]
    return F.pad(x, flat, value=0 if value is None else value.item())


def _divided(inputs: Sequence[Any], a: Attributes) -> Any:
    return torch.div(*inputs, rounding_mode=None if inputs[0].is_floating_point() else "trunc")


def _range(inputs: Sequence[Any], a: Attributes) -> Any:
    start, limit, delta = (value.item() for value in inputs)
    return torch.arange(start, limit, delta, dtype=inputs[0].dtype)


OPERATORS: dict[str, Operator] = {
    "Add": lambda i, a: i[0] + i[1],
    "AveragePool": _average,
    "Cast": lambda i, a: i[0].to(DTYPES[a["to"]]),
    "Concat": lambda i, a: torch.cat(list(i), a["axis"]),
    "Conv": _convolution,
    "Cos": lambda i, a: torch.cos(i[0]),
    "CumSum": lambda i, a: torch.cumsum(i[0], int(i[1]), dtype=i[0].dtype),
    "Div": _divided,
    "Einsum": lambda i, a: torch.einsum(a["equation"].decode(), *i),
    "Equal": lambda i, a: i[0] == i[1],
    "Erf": lambda i, a: torch.erf(i[0]),
    "Expand": lambda i, a: i[0].expand(torch.broadcast_shapes(i[0].shape, tuple(numbers(i[1])))),
    "Gather": _gather,
    "Gelu": lambda i, a: F.gelu(i[0], approximate=a.get("approximate", b"none").decode()),
    "GroupNormalization": lambda i, a: F.group_norm(i[0], a["num_groups"], i[1], i[2], a.get("epsilon", 1e-5)),
    "LayerNormalization": _layer_norm,
    "MatMul": lambda i, a: i[0] @ i[1],
    "MaxPool": _largest,
    "Mul": lambda i, a: i[0] * i[1],
    "Pad": _pad,
    "Range": _range,
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "Relu": lambda i, a: F.relu(i[0]),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda i, a: torch.tensor(i[0].shape[a.get("start", 0) : a.get("end", i[0].dim())], dtype=torch.int64),
    "Sigmoid": lambda i, a: torch.sigmoid(i[0]),
    "Sin": lambda i, a: torch.sin(i[0]),
    "Slice": _slice,
    "Softmax": lambda i, a: F.softmax(i[0], a.get("axis", -1)),
    "Split": _split,
    "Sqrt": lambda i, a: torch.sqrt(i[0]),
    "Squeeze": _squeeze,
    "Sub": lambda i, a: i[0] - i[1],
    "Transpose": lambda i, a: i[0].permute(*a["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda i, a: torch.where(*i),
}
