"""Arithmetic on sizes out of a graph, so that nothing of it is left to the CPU and a CUDA graph can hold all of it.

An exported graph reads its input's sizes, calculates with them on the CPU, and reshapes, expands and counts by the
results. Here each of these becomes an operation whose result the data's own shape decides: a reshape that copies (0) or
infers (-1) sizes, a sum with zeros of the right shape instead of an expansion, running sums of ones instead of a range.
"""

from typing import Any

import numpy as np

from vocabseg.export.graph.editor import Editor, constant, integers, made_by, number

BATCH, ROWS, COLUMNS = 0, 2, 3  # axes of the image


def remove_size_arithmetic(editor: Editor) -> int:
    """Rewrite what depends on the sizes of a graph's image (batch, C, H, W); returns how many nodes changed."""
    image = editor.graph.inputs[0]
    if not any(node.op_type == "Shape" for node in editor.graph) or len(image.shape or ()) != 4:
        return 0
    return _Sizes(editor, image).run()


class _Sizes:
    def __init__(self, editor: Editor, image: Any):
        self.editor, self.image = editor, image
        self.zeros: Any = None  # (batch, 1, 1)
        self.ranges: dict[int, Any] = {}  # axis of the image -> 1, 2, ... along that axis of the features, float32

    def run(self) -> int:
        changed = 0
        for operation, rewrite in (("Reshape", self._reshape), ("Range", self._range), ("Expand", self._expand)):
            for node in [node for node in self.editor.graph if node.op_type == operation]:
                changed += rewrite(node)
                self.editor.sweep()
        return changed

    def _axis(self, value: Any) -> int | None:
        """The axis of the image that a size comes from, however it was calculated; None for products of sizes."""
        found, waiting, met = set(), [value], set()
        while waiting:
            node = waiting.pop().producer()
            if node is None or node in met:
                continue
            met.add(node)
            if node.op_type == "Shape":
                start, end = (number(node, key, -1) for key in ("start", "end"))
                whole = node.inputs[0] is not self.image or end != start + 1
                found.add(-1 if whole else int(start))
            else:
                waiting += [one for one in node.inputs if one is not None]
        return found.pop() if len(found) == 1 and -1 not in found else None

    def _pieces(self, shape: Any) -> list[Any] | None:
        """What a shape is put together from: numbers, and values for the sizes that are not fixed."""
        pieces = made_by(shape, "Concat")
        if pieces is None:
            return None
        fixed = [constant(value) for value in pieces.inputs]
        if any(one is not None and one.size != 1 for one in fixed):
            return None
        return [value if one is None else int(one.reshape(())) for one, value in zip(fixed, pieces.inputs, strict=True)]

    def _reshape(self, node: Any) -> bool:
        import onnx_ir

        pieces = self._pieces(node.inputs[1])
        if pieces is None:
            return False
        sizes = [piece if isinstance(piece, int) else -1 for piece in pieces]
        if not isinstance(pieces[0], int) and self._axis(pieces[0]) == BATCH:
            sizes[0] = 0
        if sizes.count(-1) == 2:
            return self._unflatten(node, sizes)
        if sizes.count(-1) > 1:
            return False
        shape = self.editor.constant(np.array(sizes, np.int64), f"{node.name}_shape")
        node.replace_input_with(1, shape)
        node.attributes["allowzero"] = onnx_ir.AttrInt64("allowzero", 0)
        return True

    def _unflatten(self, node: Any, sizes: list[int]) -> bool:
        """(B, N, C) @ (B, C, h * w), reshaped to (B, N, h, w): one product over the map that was flattened for it."""
        product = made_by(node.inputs[0], "MatMul")
        flat = None if product is None else made_by(product.inputs[1], "Reshape")
        if flat is None or sizes[2:] != [-1, -1]:
            return False
        equation = {"equation": "bnc,bchw->bnhw"}
        (made,) = self.editor.before(node, "Einsum", [product.inputs[0], flat.inputs[0]], equation)
        self.editor.replace(node.outputs[0], made)
        return True

    def _range(self, node: Any) -> bool:
        """1, 2, ... in float32 up to a size of the feature map that becomes a sequence of tokens."""
        axis = self._axis(node.inputs[1])
        features = self._features()
        ones = [constant(node.inputs[0]), constant(node.inputs[2])]
        if axis not in (ROWS, COLUMNS) or features is None or any(one is None or float(one) != 1 for one in ones):
            return False
        other = COLUMNS if axis == ROWS else ROWS
        edit, name = self.editor, node.name
        start = edit.constant(np.zeros(3, np.int64), f"{name}_start")
        end = edit.constant(np.ones(3, np.int64), f"{name}_end")
        axes = edit.constant(np.array([0, 1, other], np.int64), f"{name}_axes")
        line = edit.constant(np.array([-1], np.int64), f"{name}_line")
        zero, one = (edit.constant(np.array(n, np.float32), f"{name}_{n}") for n in (0, 1))
        first = edit.constant(np.array(0, np.int64), f"{name}_axis")
        (cut,) = edit.before(node, "Slice", [features, start, end, axes])
        (flat,) = edit.before(node, "Reshape", [cut, line])
        (full,) = edit.before(node, "Cast", [flat], {"to": 1})
        (none,) = edit.before(node, "Mul", [full, zero])
        (units,) = edit.before(node, "Add", [none, one])
        (counted,) = edit.before(node, "CumSum", [units, first])
        edit.replace(node.outputs[0], counted)
        edit.graph.sort()  # the features may come later in the file
        self.ranges[axis] = counted
        return True

    def _features(self) -> Any:
        """The convolution's map (B, C, h, w) whose pixels become tokens (B, h * w, C)."""
        for node in self.editor.graph:
            shape = constant(node.inputs[1]) if node.op_type == "Reshape" else None
            if shape is None or shape.size != 3 or shape[0] != 0 or shape[2] != -1:
                continue
            turned = [user.node for user in node.outputs[0].uses()]
            if made_by(node.inputs[0], "Conv") is not None and [one.op_type for one in turned] == ["Transpose"]:
                return node.inputs[0] if integers(turned[0], "perm") == [0, 2, 1] else None
        return None

    def _expand(self, node: Any) -> bool:
        like = made_by(node.inputs[1], "Shape")
        content = constant(node.inputs[0])
        if like is not None and content is not None and content.size == 1 and not content.any():
            zero = self.editor.constant(np.zeros((), content.dtype), f"{node.name}_zero")
            (made,) = self.editor.before(node, "Mul", [like.inputs[0], zero])
            self.editor.replace(node.outputs[0], made)
            return True
        pieces = self._pieces(node.inputs[1])
        open_ = [] if pieces is None else [piece for piece in pieces if not isinstance(piece, int)]
        axis = self._axis(open_[0]) if len(open_) == 1 else None
        if pieces is None or axis is None:
            return False
        sizes = np.array([piece if isinstance(piece, int) else -1 for piece in pieces], np.int64)
        if axis == BATCH and sizes.tolist() == [-1, 1, 1]:
            zeros = self._batch_zeros(node)
        elif axis in self.ranges:
            zero = self.editor.constant(np.zeros((), np.float32), f"{node.name}_zero")
            (row,) = self.editor.before(node, "Mul", [self.ranges[axis], zero])
            shape = self.editor.constant(sizes, f"{node.name}_shape")
            (zeros,) = self.editor.before(node, "Reshape", [row, shape])
        else:
            return False
        (made,) = self.editor.before(node, "Add", [node.inputs[0], zeros])
        self.editor.replace(node.outputs[0], made)
        return True

    def _batch_zeros(self, place: Any) -> Any:
        """Zeros (batch, 1, 1), from the image's first pixels."""
        edit = self.editor
        start, end = (edit.constant(np.full(3, n, np.int64), f"batch_{n}") for n in (0, 1))
        axes = edit.constant(np.array([1, 2, 3], np.int64), "batch_axes")
        shape = edit.constant(np.array([0, 1, 1], np.int64), "batch_shape")
        zero = edit.constant(np.zeros((), np.float32), "batch_zero")
        (cut,) = edit.before(place, "Slice", [self.image, start, end, axes])
        (flat,) = edit.before(place, "Reshape", [cut, shape])
        return edit.before(place, "Mul", [flat, zero])[0]
