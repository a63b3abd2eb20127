"""Somebody's ONNX proposal network: what it takes and gives, checked by running it, and written as a bundle's graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from vocabseg.export.graph.editor import Editor
from vocabseg.export.graph.onnx_file import ExportError, load_graph, save_graph
from vocabseg.runtime.bundle.manifest import GraphRecord, sha256_file
from vocabseg.runtime.bundle.sections import InputSection
from vocabseg.runtime.engines.host_engines import open_engine

MASKS, SCORES = "mask_logits", "scores"
# The logit of proposals that are left out. Below the logit of any threshold, 0 included: no pixel is inside.
NOWHERE = -200.0
# A proposal is kept if it is more likely an object than not.
MIN_SCORE = 0.5
# The engine that must run the network; others may fail to.
NEEDED = "onnxruntime"
# Multiples of input.divisor, of two inputs that tell how the size of the masks follows from the image's.
PROBES = ((2, 3), (5, 4))


class OnnxProposals(nn.Module):
    """An ONNX file that takes images (1, 3, H, W) float32 and gives mask logits (1, N, h, w) or (N, h, w) float32.

    The masks are the output called "mask_logits", else the only one of four dimensions, else the only one of three;
    they cover the whole input. An output "scores", (1, N) or (N,) in 0..1, selects: proposals whose score is not above
    `min_score` are left out, and the others count alike. Further outputs are dropped. H and W are fixed or dynamic.

    As a module it runs the file in ONNX Runtime, image (1, 3, H, W) -> mask logits (1, N, h, w) with the selection.
    """

    def __init__(self, path: str | Path, min_score: float | None = None):
        """Raises ExportError, in one line, for a file that has no such inputs and outputs."""
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise ExportError(f"there is no proposal network at {path}: give the path of an ONNX file")
        self._graph = load_graph(self.path).graph
        self._image = self._find_image()
        self._masks = self._find_masks()
        found = [value for value in self._graph.outputs if value.name == SCORES]
        self._scores = found[0] if found else None
        if min_score is not None and self._scores is None:
            raise self._error("has no output 'scores' to compare with --min-score", "leave it out, or name one so")
        self.min_score = MIN_SCORE if min_score is None else min_score
        self._engine = open_engine(self.path, engine=NEEDED, device="cpu", precision="float32")

    def input_section(self, given: InputSection) -> InputSection:
        """The section with `size` where the network takes one size only; raises ExportError where another is set."""
        sizes = tuple(self._image.shape)[2:]
        if not any(isinstance(size, int) for size in sizes):
            return given
        if not all(isinstance(size, int) for size in sizes):
            raise self._error(f"has one fixed and one dynamic size, {self._shape(self._image)}", "fix both or none")
        if given.size not in (None, sizes):
            problem = f"takes images of {list(sizes)} pixels alone, and input.size is {list(given.size)}"
            raise self._error(problem, "set it to these")
        return msgspec.structs.replace(given, size=sizes)

    def forward(self, image: Tensor) -> Tensor:
        """Raises ExportError for outputs that are not what a bundle needs."""
        outputs = self._engine.run({self._image.name: image.numpy()})
        logits = outputs[self._masks.name]
        logits = logits[None] if logits.ndim == 3 else logits
        if logits.ndim != 4 or len(logits) != 1 or 0 in logits.shape or logits.dtype != np.float32:
            shape = " x ".join(map(str, logits.shape))
            raise self._error(f"gives masks {shape} {logits.dtype}", "it must give 1 x N x h x w float32")
        low, high = float(logits.min()), float(logits.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise self._error("gives mask logits that are infinite or no numbers", "check its weights and input.std")
        if low >= 0 and high <= 1:
            raise self._error(f"gives masks from {low:g} to {high:g}, as probabilities are", "let it give logits")
        if self._scores is None:
            return torch.from_numpy(logits)
        scores = outputs[SCORES].reshape(-1)
        if len(scores) != logits.shape[1]:
            raise self._error(f"gives {len(scores)} scores for {logits.shape[1]} masks", "it must give one for each")
        if not (scores.min() >= 0 and scores.max() <= 1):
            raise self._error(f"gives scores from {scores.min():g} to {scores.max():g}", "they must be in 0..1")
        kept = (scores > np.float32(self.min_score))[None, :, None, None]
        return torch.from_numpy(np.where(kept, logits, np.float32(NOWHERE)))

    def dimensions(self, spec: InputSection) -> dict[str, list[int | str]]:
        """The shapes of "image" and "mask_logits", found by running the network; raises ExportError.

        Dynamic heights and widths of masks must be a fraction of the image's, such as "height/4".
        """
        shapes = [(3, *spec.size)] * 2 if spec.size else [(3, *(spec.divisor * n for n in probe)) for probe in PROBES]
        noise, asked = torch.Generator().manual_seed(0), shapes if self.dynamic else shapes[:1]
        runs = [self(torch.randn(1, *shape, generator=noise)).shape for shape in asked]
        if len({run[1] for run in runs}) > 1:
            raise self._error(f"gives {' and '.join(str(run[1]) for run in runs)} masks", "pad them to a fixed number")
        image: list[int | str] = [1, 3, *(("height", "width") if self.dynamic else shapes[0][1:])]
        masks: list[int | str] = [1, int(runs[0][1])]
        for axis, name in ((2, "height"), (3, "width")):
            sizes = [(int(shape[axis - 1]), int(run[axis])) for shape, run in zip(shapes, runs, strict=False)]
            if len({masked for _, masked in sizes}) == 1:
                masks.append(sizes[0][1])
                continue
            strides = {whole / masked for whole, masked in sizes}
            if len(strides) > 1 or not next(iter(strides)).is_integer():
                pairs = " and ".join(f"{masked} for {whole}" for whole, masked in sizes)
                raise self._error(f"gives masks of a {name} of {pairs}", f"export it with a fixed {name}")
            stride = int(next(iter(strides)))
            masks.append(name if stride == 1 else f"{name}/{stride}")
        return {"image": image, MASKS: masks}

    def save(self, path: Path, dimensions: dict[str, list[int | str]]) -> GraphRecord:
        """Write it as a bundle's proposal graph: one image in, mask logits of the proposals that are kept out."""
        import onnx_ir

        model = load_graph(self.path)
        editor, graph = Editor(model), model.graph
        outputs = {value.name: value for value in graph.outputs}
        logits, scores, rank = outputs[self._masks.name], outputs.get(SCORES), len(self._masks.shape)

        def node(operation: str, inputs: Sequence[Any], **attributes: Any) -> Any:
            made = onnx_ir.Value(name=editor.name(f"proposals_{operation.lower()}"))
            name = editor.name(f"proposals_{operation}")
            graph.append(onnx_ir.node(operation, list(inputs), attributes, outputs=[made], name=name))
            return made

        if rank == 3:
            logits = node("Unsqueeze", [logits, editor.constant(np.array([0], np.int64), "proposals_batch")])
        if scores is None:
            logits = node("Identity", [logits])
        else:
            shape = editor.constant(np.array([1, -1, 1, 1], np.int64), "proposals_column")
            column = node("Reshape", [scores, shape])
            least = editor.constant(np.array(self.min_score, np.float32), "proposals_min_score")
            nowhere = editor.constant(np.array(NOWHERE, np.float32), "proposals_nowhere")
            logits = node("Where", [node("Greater", [column, least]), logits, nowhere])
        image = graph.inputs[0]
        for value in (*graph.initializers.values(), *(value for one in graph for value in one.outputs)):
            if value.name in dimensions:  # a name of ours that they use for something else
                value.name = editor.name(f"{value.name}_inner")
        image.name, logits.name, logits.type = "image", MASKS, onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        image.shape, logits.shape = (onnx_ir.Shape(dimensions[name]) for name in ("image", MASKS))
        graph.outputs[:] = [logits]
        editor.sweep()
        editor.forget_types()
        return save_graph(model, path)

    def provenance(self) -> dict[str, Any]:
        """What it was made from."""
        scores = {} if self._scores is None else {"min_score": self.min_score}
        return {"made_from": self.path.name, "sha256": sha256_file(self.path), **scores}

    @property
    def dynamic(self) -> bool:
        """Whether the height and width of its images may be chosen."""
        return not any(isinstance(size, int) for size in tuple(self._image.shape)[2:])

    def _find_image(self) -> Any:
        inputs = [value for value in self._graph.inputs if value.name not in self._graph.initializers]
        if len(inputs) != 1:
            raise self._error(f"has {len(inputs)} inputs ({_names(inputs)})", "it must take one image, and no more")
        image = inputs[0]
        shape = None if image.shape is None else tuple(image.shape)
        fixed = [size if isinstance(size, int) else None for size in shape or ()]
        if len(fixed) != 4 or fixed[0] not in (1, None) or fixed[1] not in (3, None) or str(image.dtype) != "FLOAT":
            raise self._error(f"takes {image.name} {self._shape(image)}", "it must take 1 x 3 x H x W float32")
        return image

    def _find_masks(self) -> Any:
        outputs = [value for value in self._graph.outputs if value.name != SCORES]
        for fitting in (
            [value for value in outputs if value.name == MASKS],
            *([value for value in outputs if value.shape is not None and len(value.shape) == rank] for rank in (4, 3)),
        ):
            if len(fitting) == 1 and fitting[0].shape is not None and len(fitting[0].shape) in (3, 4):
                return fitting[0]
        raise self._error(f"has the outputs {_names(outputs) or 'none'}", "call the one of N masks 'mask_logits'")

    def _shape(self, value: Any) -> str:
        if value.shape is None:
            return f"{value.dtype} of unknown shape"
        return f"{' x '.join(str(getattr(size, 'value', size)) for size in value.shape)} {value.dtype}"

    def _error(self, problem: str, advice: str) -> ExportError:
        return ExportError(f"the proposal network {self.path} {problem}: {advice}")


def _names(values: Sequence[Any]) -> str:
    return ", ".join(value.name for value in values[:6])
