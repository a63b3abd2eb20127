"""A float32 ONNX graph -> the same in FP16, with the precision in the graph itself, as TensorRT 11 and ONNX Runtime
want it: weights, inputs and outputs in FP16, islands in float32 behind casts where a recipe asks for them.

Own code, because no library does that on these graphs. onnxconverter-common 1.16 also converts the scales of Resize and
keeps the float32 target of a Cast (the checker refuses both), turns the infinities of a mask into -10000 and raises
tiny weights to 1e-7; onnxruntime.transformers.float16 writes nodes out of order and names twice; NVIDIA's autocast
(modelopt) writes valid graphs, but decides on islands itself, tells no reason, and installs with 6 GB of packages.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.export.graph.editor import MICROSOFT
from vocabseg.export.graph.files import ExportError, save_graph
from vocabseg.export.graph.fuse_onnxruntime import fuse
from vocabseg.export.graph.values import gives_half, infer_types, takes_half
from vocabseg.export.half.islands import ANY_INPUT, SMALLEST_NORMAL, Plan, is_float_value, plan_nodes
from vocabseg.export.half.recipe import Recipe, default_recipe
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.bundle.manifest import MANIFEST, GraphRecord, Manifest, read_manifest
from vocabseg.runtime.bundle.variants import new_variants

# Called as progress(what, done, total).
Progress = Callable[[str, int, int], None]


def add_half_graphs(bundle: str | Path, recipe: Recipe | None = None, progress: Progress | None = None) -> Manifest:
    """Add every graph of a bundle in FP16.

    Three variants: "float16" for TensorRT, "float16-rounded" to check it on a CPU, "float16-onnxruntime" for ONNX
    Runtime on a GPU. Without a recipe it is the one that comes with the package. Returns the bundle's new manifest.
    Raises BundleError, ConfigurationError (a recipe for other graphs), ExportError and OutputError; the bundle is then
    what it was.
    """
    from vocabseg.export.half.rounding import write_rounded

    recipe = recipe or default_recipe()
    opened = open_bundle(bundle)
    report = progress or (lambda what, done, total: None)
    graphs = opened.manifest.graphs
    with new_variants(opened.folder) as variants:
        for done, (name, record) in enumerate(graphs.items()):
            report(f"{name} in FP16", done, len(graphs))
            place = variants.place("float16")
            half = place / f"{name}.onnx"
            variants.add("float16", name, write_half(opened.folder / record.file, half, recipe, name))
            rounded = write_rounded(half, place / f"{name}.rounded.onnx")
            variants.add("float16-rounded", name, rounded, place="float16")
            fused = variants.place("float16-onnxruntime") / f"{name}.onnx"
            own = write_half(opened.folder / record.file, fused, recipe, name, onnxruntime=True)
            variants.add("float16-onnxruntime", name, own)
        report("done", len(graphs), len(graphs))
    return read_manifest(opened.folder / MANIFEST)


def write_half(
    source: str | Path, target: str | Path, keep: Recipe, graph: str | None = None, onnxruntime: bool = False
) -> GraphRecord:
    """Write the float32 graph at `source` in FP16 at `target`; `graph` is its name in the recipe, else the file's.

    With `onnxruntime`, parts are fused into ONNX Runtime's own operations where the recipe keeps none of their nodes.
    The record's provenance says what stays in float32 and why, and how many weights FP16 blurs: "zero" of them vanish,
    "subnormal" ones have fewer than eleven bits. Raises ExportError where the graph cannot be rewritten or the result
    is not valid, and ConfigurationError for a recipe that was made for another graph.
    """
    source, target = Path(source), Path(target)
    model, digest = load_typed(source)
    if any(value.dtype.name == "FLOAT16" for value in model.graph.inputs):
        raise ExportError(f"{source.name} is in FP16 already: give the float32 graph")
    name = graph or source.stem
    part = keep.graph(name, digest)
    plan = plan_nodes(model, part, source.name)
    for wanted, values in ((part.float32_inputs, model.graph.inputs), (part.float32_outputs, model.graph.outputs)):
        unknown = sorted(set(wanted) - {value.name for value in values})
        if unknown:
            raise ExportError(f"{source.name} has no {unknown[0]!r}, which the recipe keeps in float32")
    fused = {}
    if onnxruntime:
        fused = fuse(model, {node.name for node in plan.kept})
        infer_types(model)
        plan = plan_nodes(model, part, source.name, strict=False)
    rewriting = _Rewriting(model, plan)
    rewriting.run(set(part.float32_inputs), set(part.float32_outputs))
    forget_types(model)
    reasons: dict[str, list[str]] = {}
    for node, reason in plan.kept.items():
        reasons.setdefault(reason, []).append(node.name or node.op_type)
    provenance = {
        "made_from": digest,
        "float32": [{"reason": reason, "nodes": nodes} for reason, nodes in reasons.items()],
        "nodes": {"float16": len(plan.low), "float32": len(plan.kept), "casts": rewriting.casts},
        "weights": rewriting.weights,
        **({"fused": fused} if onnxruntime else {}),
        "versions": {package: version(package) for package in ("onnx", "onnx-ir")},
    }
    opset = model.graph.opset_imports[""]
    domains = (MICROSOFT,) if onnxruntime else ()
    return save_graph(model, target, opset, domains, dtype="float16", provenance=provenance)


def load_typed(path: Path, map_weights: bool = True) -> tuple[Any, str]:
    """An onnx_ir model in which every value has its type, constants are initializers, and its digest (GraphRecord).

    Without `map_weights` those in files of their own stay references, which are written again as such.
    """
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    try:
        proto = onnx.load(path, load_external_data=False)
        model = onnx_ir.from_proto(proto)
    except Exception as error:  # protobuf's and onnx_ir's have no base in common
        raise ExportError(f"{path} is no ONNX graph: {(str(error).splitlines() or ['unreadable'])[0]}") from error
    onnx_ir.external_data.set_base_dir(model.graph, path.parent)
    model = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model).model
    for value in model.graph.initializers.values():
        if map_weights and isinstance(value.const_value, onnx_ir.ExternalTensor):
            value.const_value = mapped_weight(path, value.const_value)
    infer_types(model)
    return model, _digest(path, proto)


def forget_types(model: Any) -> None:
    """Drop inner types and shapes, which engines infer; graphs of other sizes then stay equal in bytes."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None


def mapped_weight(path: Path, tensor: Any) -> Any:
    """Weights from the file beside the graph. onnx_ir would refuse files that several bundles share by hard links."""
    import onnx_ir

    file = path.parent / tensor.location
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ExportError(f"{path} names weights outside its folder ({tensor.location}): do not use this graph")
    shape = tuple(int(size) for size in tensor.shape)
    try:
        content = np.memmap(file, tensor.dtype.numpy(), "r", tensor.offset or 0, shape)
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read the weights of {path}: {str(error).splitlines()[0]}") from error
    return onnx_ir.tensor(content, name=tensor.name)


def _digest(path: Path, proto: Any) -> str:
    """What GraphRecord.digest gives for the graph."""
    places = {entry.value for one in proto.graph.initializer for entry in one.external_data if entry.key == "location"}
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, *(path.parent / n for n in places))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@dataclass
class _Rewriting:
    """Changes types node by node, and puts a cast wherever a value is wanted in another type than it has."""

    model: Any
    plan: Plan
    casts: int = 0
    weights: dict[str, int] = field(default_factory=lambda: {"total": 0, "zero": 0, "subnormal": 0})

    def run(self, float32_inputs: set[str], float32_outputs: set[str]) -> None:
        import onnx_ir

        self.half, self.full = onnx_ir.DataType.FLOAT16, onnx_ir.DataType.FLOAT
        self.graph = self.model.graph
        self.opset = self.graph.opset_imports[""]
        self.names = {value.name for value in (*self.graph.inputs, *self.graph.initializers.values())}
        self.names |= {value.name for node in self.graph for value in node.outputs}
        self.other: dict[tuple[Any, Any], Any] = {}  # (value, type) -> the same value in that type
        wanted = list(self._wanted())  # before any value changes its type
        outputs = [is_float_value(value) for value in self.graph.outputs]
        for value in self.graph.inputs:
            if is_float_value(value) and value.name not in float32_inputs:
                value.dtype = self.half
        for node in self.plan.low:
            self._retype(node)
        for node, index, dtype in wanted:
            node.replace_input_with(index, self._as(node.inputs[index], dtype))
        for index, (value, floating) in enumerate(zip(list(self.graph.outputs), outputs, strict=True)):
            if floating:
                self._output(index, value, self.full if value.name in float32_outputs else self.half)
        for value in list(self.graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[value.name]

    def _wanted(self) -> Iterator[tuple[Any, int, Any]]:
        """Every float input of every node with the type that it should have there."""
        for node in self.graph:
            low = node in self.plan.low
            for index, value in enumerate(node.inputs):
                if value is not None and is_float_value(value) and (node.op_type not in ANY_INPUT or value.const_value):
                    yield node, index, self.half if low and takes_half(node, index, self.opset) else self.full

    def _retype(self, node: Any) -> None:
        """Make the float outputs of a node FP16."""
        import onnx_ir

        for index, value in enumerate(node.outputs):
            if not is_float_value(value) or not gives_half(node, index, self.opset):
                continue
            value.dtype = self.half
            if node.op_type == "Cast":
                node.attributes["to"] = onnx_ir.AttrInt64("to", int(self.half))
            elif node.op_type == "ConstantOfShape":
                given = node.attributes.get("value")
                content = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
                tensor = onnx_ir.tensor(content.astype(np.float16))
                node.attributes["value"] = onnx_ir.AttrTensor("value", tensor)

    def _as(self, value: Any, dtype: Any) -> Any:
        """The value in the type asked for: itself, a converted weight, or the one cast that all its users share."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self.other:
            made = self._convert(value) if value.const_value is not None else self._cast(value, dtype)
            self.other[value, dtype] = made
        return self.other[value, dtype]

    def _convert(self, value: Any) -> Any:
        import onnx_ir

        content = value.const_value.numpy()
        with np.errstate(under="ignore", over="ignore"):
            converted = content.astype(np.float16)
        magnitude = np.abs(content)
        self.weights["total"] += content.size
        self.weights["zero"] += int(np.count_nonzero((converted == 0) & (magnitude > 0)))
        self.weights["subnormal"] += int(np.count_nonzero((converted != 0) & (magnitude < SMALLEST_NORMAL)))
        only = all(node in self.plan.low for node, _ in value.uses()) and not value.is_graph_output()
        name = value.name if only else self._new_name(f"{value.name}_float16")
        if only:
            del self.graph.initializers[value.name]
        made = onnx_ir.Value(
            name=name,
            shape=value.shape,
            type=onnx_ir.TensorType(self.half),
            const_value=onnx_ir.tensor(converted, name=name),
        )
        self.graph.register_initializer(made)
        return made

    def _cast(self, value: Any, dtype: Any, name: str | None = None) -> Any:
        """A cast right behind what gives the value, so that nodes stay in an order in which they can run."""
        import onnx_ir

        name = name or self._new_name(f"{value.name}_{'float16' if dtype == self.half else 'float32'}")
        made = onnx_ir.Value(name=name, shape=value.shape, type=onnx_ir.TensorType(dtype))
        to = onnx_ir.AttrInt64("to", int(dtype))
        node = onnx_ir.Node("", "Cast", [value], [to], outputs=[made], name=f"cast_{name}")
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], node)
        self.casts += 1
        return made

    def _output(self, index: int, value: Any, dtype: Any) -> None:
        """Give an output its type, under its name."""
        if value.dtype == dtype:
            return
        name, shape = value.name, value.shape
        if value.producer() is not None:
            value.name = self._new_name(f"{name}_inner")
        made = self._cast(value, dtype, name)
        made.shape = shape
        self.graph.outputs[index] = made

    def _new_name(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name
