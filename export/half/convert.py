"""A float32 ONNX graph -> the same in FP16 or bfloat16, with the precision in the graph itself, as TensorRT 11 and ONNX
Runtime expect it: weights, inputs and outputs in FP16, islands in float32 behind casts where a recipe asks for them.
Inputs and outputs of bfloat16 graphs stay in float32, since NumPy has no such type.

Own code, because no library does that on these graphs. onnxconverter-common 1.16 also converts the scales of Resize and
keeps the float32 target of a Cast (the checker refuses both), turns the infinities of a mask into -10000 and raises
tiny weights to 1e-7; onnxruntime.transformers.float16 writes nodes out of order and uses names twice; NVIDIA's autocast
(modelopt) writes valid graphs, but decides on islands itself, gives no reason, and installs with 6 GB of packages.
"""

import glob
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vocabseg.export.graph.editor import MICROSOFT, Editor
from vocabseg.export.graph.fuse_onnxruntime import fuse
from vocabseg.export.graph.onnx_file import ExportError, graph_digest, load_graph, save_graph
from vocabseg.export.graph.values import gives_half, infer_types, set_output_type, takes_half
from vocabseg.export.half.islands import ANY_INPUT, SMALLEST_NORMAL, Islands, find_islands, is_float_value
from vocabseg.export.half.recipe import GraphRecipe, Keep, Recipe, default_recipe
from vocabseg.export.half.rounding import write_rounded
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import MANIFEST, GraphRecord, read_manifest
from vocabseg.runtime.bundle.plans import BUILT_FROM, plan_variant
from vocabseg.runtime.bundle.variants import new_variants
from vocabseg.runtime.progress import Progress, silent

# The first opset in which convolutions and pooling take bfloat16; nothing else of their definitions changed.
BFLOAT16_OPSET = 22


def add_half_graphs(bundle: Bundle, recipe: Recipe | None = None, progress: Progress = silent) -> Bundle:
    """Add every graph of a bundle in FP16; returns the bundle with them.

    Three variants: "float16" for TensorRT, "float16-rounded" to check it on a CPU, "float16-onnxruntime" for ONNX
    Runtime on a GPU. The default recipe is the one that comes with the package. Raises ConfigurationError (a recipe for
    other graphs), ExportError and OutputError; the bundle is then what it was.
    """
    recipe = recipe or default_recipe()
    graphs = bundle.manifest.graphs
    with new_variants(bundle.folder) as variants:
        for done, (name, record) in enumerate(graphs.items()):
            progress(f"{name} in FP16", done, len(graphs))
            source, digest = bundle.path(record.file), record.digest()
            target = variants.place("float16") / f"{name}.onnx"
            half = write_half(source, target, recipe, name, digest=digest)
            variants.add("float16", name, half)
            rounded = write_rounded(target, target.with_name(f"{name}.rounded.onnx"), half.digest())
            variants.add("float16-rounded", name, rounded, place="float16")
            target = variants.place("float16-onnxruntime") / f"{name}.onnx"
            fused = write_half(source, target, recipe, name, onnxruntime=True, digest=digest)
            variants.add("float16-onnxruntime", name, fused)
        progress("done", len(graphs), len(graphs))
    return bundle.with_manifest(read_manifest(bundle.path(MANIFEST)))


def add_plan_graphs(
    bundle: Bundle, precision: str, recipe: Recipe | None = None, progress: Progress = silent
) -> Bundle:
    """Add the graphs that plans of "bfloat16", "int8" or "fp8" are built from; returns the bundle with them.

    In bfloat16, with the range of float32, nothing overflows; its eight bits of precision lose more than FP16. Graphs
    of INT8 and FP8 are those of the calibration with all that they leave in float32 in FP16, except what the bundle's
    FP16 graphs keep in float32 (or `recipe`). Raises as `add_half_graphs`, and BundleError for graphs that are missing.
    """
    variant, origin = plan_variant(precision), _origin(precision)
    with new_variants(bundle.folder) as variants:
        for done, name in enumerate(bundle.manifest.graphs):
            progress(f"{name} in {precision}", done, len(bundle.manifest.graphs))
            source, target = bundle.graph(name, origin), variants.place(variant) / f"{name}.onnx"
            used = recipe or (default_recipe(precision) if origin == "float32" else _recipe_of(bundle, name))
            if origin != "float32":  # a recipe is made for the float32 graph
                part = used.graph(name, bundle.graph(name).digest())
                used = Recipe(precision=used.precision, graphs={name: msgspec.structs.replace(part, made_for=None)})
            made = write_half(bundle.graph_path(name, origin), target, used, name, digest=source.digest())
            if origin != "float32":
                provenance = source.provenance | made.provenance
                made = msgspec.structs.replace(made, dtype=source.dtype, provenance=provenance)
            variants.add(variant, name, made)
        progress("done", len(bundle.manifest.graphs), len(bundle.manifest.graphs))
    return bundle.with_manifest(read_manifest(bundle.path(MANIFEST)))


def _origin(precision: str) -> str:
    """The variant that graphs for plans of `precision` are made from: the calibrated one, else float32."""
    return precision if precision in BUILT_FROM else "float32"


def _recipe_of(bundle: Bundle, graph: str) -> Recipe:
    """What the bundle's FP16 graph keeps in float32; the default recipe where it has none."""
    half = bundle.manifest.graphs_in("float16").get(graph)
    if half is None:
        return default_recipe()
    kept = half.provenance.get("float32", [])
    keep = [Keep(node=glob.escape(node), reason=entry["reason"]) for entry in kept for node in entry["nodes"]]
    whole = {"inputs": half.inputs, "outputs": half.outputs}
    names = {key: [tensor.name for tensor in tensors if tensor.dtype == "float32"] for key, tensors in whole.items()}
    part = GraphRecipe(float32_inputs=names["inputs"], float32_outputs=names["outputs"], keep=keep)
    return Recipe(graphs={graph: part})


def stale_graphs(bundle: Bundle, graphs: Iterable[str], precision: str = "float16") -> list[str]:
    """Those of `graphs` whose form for `precision` is missing, or was made from another graph than the bundle's."""
    variants = bundle.manifest.graphs_in(plan_variant(precision))
    return [
        name
        for name in graphs
        if name not in variants
        or variants[name].provenance.get("made_from") != bundle.graph(name, _origin(precision)).digest()
    ]


def write_half(
    source: str | Path,
    target: str | Path,
    recipe: Recipe,
    graph: str | None = None,
    onnxruntime: bool = False,
    digest: str | None = None,
) -> GraphRecord:
    """Write the float32 graph at `source` in the recipe's precision to `target`.

    `graph` is its name in the recipe (default: the file's). bfloat16 needs opset 22, to which older graphs are raised.

    With `onnxruntime`, parts are fused into ONNX Runtime's own operations, unless the recipe keeps one of their nodes.
    The record's provenance says what stays in float32 and why, and how many weights lose precision: "zero" of them
    vanish, "subnormal" ones have fewer than eleven bits. `digest` is the source's, if it is known. Raises ExportError
    if the graph cannot be rewritten or the result is not valid, and ConfigurationError for another graph's recipe.
    """
    source, target, precision = Path(source), Path(target), recipe.precision
    model, digest = load_graph(source), digest or graph_digest(source)
    if precision == "bfloat16":
        model.graph.opset_imports[""] = max(model.graph.opset_imports[""], BFLOAT16_OPSET)
    infer_types(model)
    if any(value.dtype.name == "FLOAT16" for value in model.graph.inputs):
        raise ExportError(f"{source.name} is in FP16 already: give the float32 graph")
    part = recipe.graph(graph or source.stem, digest)
    for wanted, values in ((part.float32_inputs, model.graph.inputs), (part.float32_outputs, model.graph.outputs)):
        unknown = sorted(set(wanted) - {value.name for value in values})
        if unknown:
            raise ExportError(f"{source.name} has no {unknown[0]!r}, which the recipe keeps in float32")
    islands = find_islands(model, part, source.name, precision=precision)
    fused = {}
    if onnxruntime:
        counts = fuse(model, {node.name for node in islands.kept})
        infer_types(model)
        islands = find_islands(model, part, source.name, strict=False)
        fused = {"fused": counts}
    rewriting = _Rewriting(model, islands, precision)
    if precision == "bfloat16":
        rewriting.run(*({value.name for value in values} for values in (model.graph.inputs, model.graph.outputs)))
    else:
        rewriting.run(set(part.float32_inputs), set(part.float32_outputs))
    rewriting.editor.forget_types()
    reasons: dict[str, list[str]] = {}
    for node, reason in islands.kept.items():
        reasons.setdefault(reason, []).append(node.name or node.op_type)
    provenance = {
        "made_from": digest,
        "float32": [{"reason": reason, "nodes": nodes} for reason, nodes in reasons.items()],
        "nodes": {precision: len(islands.low), "float32": len(islands.kept), "casts": rewriting.casts},
        "weights": rewriting.weights,
        **fused,
        "versions": {package: version(package) for package in ("onnx", "onnx-ir")},
    }
    domains = (MICROSOFT,) if onnxruntime else ()
    return save_graph(model, target, domains, dtype=precision, provenance=provenance)


class _Rewriting:
    """Changes types node by node, and puts a cast wherever a value is read in another type than it has."""

    def __init__(self, model: Any, islands: Islands, precision: str):
        import onnx_ir

        self.precision = precision
        self.half, self.full = onnx_ir.DataType[precision.upper()], onnx_ir.DataType.FLOAT
        self.editor, self.graph, self.islands = Editor(model), model.graph, islands
        self.opset = self.graph.opset_imports[""]
        self.casts = 0
        self.weights = {"total": 0, "zero": 0, "subnormal": 0}
        self._other: dict[tuple[Any, Any], Any] = {}  # (value, type) -> the same value in that type

    def run(self, float32_inputs: set[str], float32_outputs: set[str]) -> None:
        inputs = list(self._float_inputs())  # before any value changes its type
        outputs = [value for value in self.graph.outputs if is_float_value(value)]
        for value in self.graph.inputs:
            if is_float_value(value) and value.name not in float32_inputs:
                value.dtype = self.half
        for node in self.islands.low:
            for index, value in enumerate(node.outputs):
                if is_float_value(value) and gives_half(node, index, self.opset, self.precision):
                    value.dtype = self.half
                    set_output_type(node, self.half)
        for node, index, dtype in inputs:
            node.replace_input_with(index, self._as(node.inputs[index], dtype))
        for value in outputs:
            dtype = self.full if value.name in float32_outputs else self.half
            if value.dtype != dtype:
                self.editor.give_out(value, self._cast(value, dtype))
        self.editor.sweep()

    def _float_inputs(self) -> Iterator[tuple[Any, int, Any]]:
        """Every float input of every node with the type that it should have there."""
        for node in self.graph:
            low = node in self.islands.low
            for index, value in enumerate(node.inputs):
                if value is not None and is_float_value(value) and (node.op_type not in ANY_INPUT or value.const_value):
                    half = low and takes_half(node, index, self.opset, self.precision)
                    yield node, index, self.half if half else self.full

    def _as(self, value: Any, dtype: Any) -> Any:
        """The value in the type asked for: itself, a converted weight, or the one cast that all its readers share."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._other:
            made = self._convert(value) if value.const_value is not None else self._cast(value, dtype)
            self._other[value, dtype] = made
        return self._other[value, dtype]

    def _convert(self, value: Any) -> Any:
        content = value.const_value.numpy()
        with np.errstate(under="ignore", over="ignore"):
            converted = content.astype(self.half.numpy())
        magnitude = np.abs(content)
        self.weights["total"] += content.size
        self.weights["zero"] += int(np.count_nonzero((converted == 0) & (magnitude > 0)))
        if self.precision == "float16":
            self.weights["subnormal"] += int(np.count_nonzero((converted != 0) & (magnitude < SMALLEST_NORMAL)))
        if all(node in self.islands.low for node, _ in value.uses()) and not value.is_graph_output():
            return self.editor.constant(converted, value.name, instead_of=value)
        return self.editor.constant(converted, f"{value.name}_{self.precision}")

    def _cast(self, value: Any, dtype: Any) -> Any:
        self.casts += 1
        return self.editor.cast(value, dtype, f"{value.name}_{self.precision if dtype == self.half else 'float32'}")
