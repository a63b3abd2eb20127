"""Graphs against their modules: on random numbers, and on a real photo and real class names."""

import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from vocabseg.export.configuration import Configuration
from vocabseg.export.graph.onnx_file import ExportError
from vocabseg.runtime.bundle.manifest import QUERIES, PromptSpec
from vocabseg.runtime.bundle.sections import RegionSpec
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.segmenter.host_stages import HostProposals, HostStages
from vocabseg.runtime.segmenter.pixels import whole_image
from vocabseg.runtime.text.prompts import AnyTokenizer, token_sequences

Arrays = dict[str, np.ndarray]

NAMES = ("cat", "grass", "potted plant", "wall-brick")
CROPS = 8
SEED = 20211229  # any fixed number: the same export has the same figures

# The parity contract's limit for region embeddings in FP32, applied to every output. For maps, whose single values
# decide about pixels, the error relative to the largest value is limited too.
COSINE_LIMIT = 0.99999
RELATIVE_LIMIT = 1e-3


def sample_pixels(path: str | Path | None) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the user's photo, or this package's own (Chelsea the cat, by Stéfan van der Walt, CC0)."""
    if path is not None:
        return load_image(path)
    with as_file(files("vocabseg.export") / "sample.jpg") as own:
        return load_image(own)


class Photo:
    """What the networks get from a photo: the proposal network's input, and the crops of the regions that it finds.

    Without a proposal network, regions are the photo and its halves; with a per-pixel network in its place, whose input
    is not padded, the region is the whole photo.
    """

    def __init__(
        self, pixels: np.ndarray, configuration: Configuration, region: RegionSpec, proposal: nn.Module | None
    ):
        try:
            kernels = load_kernels()
        except EngineError:
            kernels = load_kernels("reference")

        def run(graph: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
            assert proposal is not None
            found = _run_module(proposal, inputs)
            return dict(zip(("mask_logits", QUERIES), found, strict=False))

        spec, self._per_pixel = configuration.input, configuration.proposal.per_pixel
        spec = msgspec.structs.replace(spec, divisor=1) if self._per_pixel else spec
        self._stages, self._proposed = HostStages(spec, region, run, kernels), proposal is not None
        self._prepared = self._stages.prepare(pixels)

    @property
    def network_input(self) -> np.ndarray:
        """(1, 3, Hp, Wp) float32."""
        return self._prepared.network_input

    def encoder_inputs(self) -> Arrays:
        """The image encoder's inputs for the first regions that the network finds, at most 8 and maybe none."""
        prepared = self._prepared
        if self._per_pixel:
            resized, given = ((array.shape[0], array.shape[1]) for array in (prepared.resized, prepared.image))
            proposals = self._stages.given(prepared.image, prepared.resized, whole_image(resized, given), None)
        else:
            proposals = self._stages.propose(prepared) if self._proposed else self._halves()
        self._stages.describe(proposals)
        return self._stages.encoder_inputs_of(proposals, range(CROPS))

    def _halves(self) -> HostProposals:
        pixels = self._prepared.resized
        size = (pixels.shape[0], pixels.shape[1])
        logits = np.full((3, *size), 9, np.float32)
        logits[1, : size[0] // 2] = logits[2, :, : size[1] // 2] = -9
        return self._stages.given(pixels, pixels, Masks(logits, size, size, size), None)


def proposal_inputs(photo: Photo) -> list[Arrays]:
    """Noise in two sizes and two batch sizes, and the photo."""
    return [{"image": _noise(1, 3, 64, 96)}, {"image": _noise(2, 3, 160, 128)}, {"image": photo.network_input}]


def pixel_inputs(photo: Photo) -> list[Arrays]:
    """The same for a network that takes images of any size."""
    return [{"image": _noise(1, 3, 64, 96)}, {"image": _noise(2, 3, 75, 101)}, {"image": photo.network_input}]


def given_inputs(photo: Photo) -> list[Arrays]:
    """The same for a network that may take one size only, and whose choices noise could make a coin's: the photo."""
    return [{"image": photo.network_input}]


def image_inputs(photo: Photo) -> list[Arrays]:
    """Noise in two batch sizes, and real regions if there are any; patch masks of noise cover half of all patches."""
    real = photo.encoder_inputs()
    inputs = [{name: _noise(count, *array.shape[1:]) for name, array in real.items()} for count in (1, 3)]
    for noise in inputs:
        if "patch_mask" in noise:
            noise["patch_mask"] = (noise["patch_mask"] > 0).astype(np.float32)
    return [*inputs, real] if len(real["crops"]) else inputs


def text_inputs(tokenizer: AnyTokenizer, prompts: Sequence[PromptSpec], id_count: int) -> list[Arrays]:
    """Random token ids below `id_count` in two batch sizes, and some class names in every prompt."""
    context = tokenizer.context_length
    generator = np.random.default_rng(SEED)
    inputs = []
    for batch in (1, 3):
        token_ids = generator.integers(0, id_count, (batch, context))
        inputs.append({"token_ids": token_ids, "eot_index": generator.integers(0, context, batch)})
    for index, prompt in enumerate(prompts):
        if prompt in prompts[:index]:
            continue
        sequences = [token_sequences(name, prompt, tokenizer)[0] for name in NAMES]
        sequences = [sequence for sequence in sequences if len(sequence[0]) <= context]
        token_ids = np.zeros((len(sequences), context), np.int64)
        for row, (ids, _) in zip(token_ids, sequences, strict=True):
            row[: len(ids)] = ids
        inputs.append({"token_ids": token_ids, "eot_index": np.array([end for _, end in sequences], np.int64)})
    return [arrays for arrays in inputs if len(arrays["eot_index"])]


def check_graph(
    path: str | Path,
    module: nn.Module,
    inputs: Sequence[Mapping[str, np.ndarray]],
    original: str = "PyTorch",
    needed: str | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Run a graph on every installed engine and compare with its module in float32: engine -> output -> figures.

    Figures are the largest absolute error, that error over the largest value, and the worst cosine of an output vector
    (of a map, for mask logits). Raises ExportError beyond the limits above, and if no engine is installed; `original`
    names what the module is. Of a graph that is not this package's own, one engine is `needed`: a warning names others
    that cannot run it, and they are not in the report. Without that, every engine must.
    """
    from vocabseg.runtime.engines.choose import ON_CPU, installed
    from vocabseg.runtime.engines.host_engines import open_engine

    path = Path(path)
    names = [offer.name for offer in ON_CPU if installed(offer.name)]
    if not names:
        raise ExportError("no engine is installed to check the exported graphs with: pip install 'vocabseg[cpu]'")
    if needed is not None and needed not in names:
        raise ExportError(f"{needed}, which the graph is checked with, is not installed: pip install 'vocabseg[cpu]'")
    expected = [_run_module(module, arrays) for arrays in inputs]
    report: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        engine = open_engine(path, engine=name, device="cpu", precision="float32")
        figures: dict[str, dict[str, float]] = {}
        try:
            outputs = [engine.run(arrays) for arrays in inputs]
        except EngineError as error:
            if needed in (None, name):
                raise
            warnings.warn(f"{error}; run it with --engine {needed}", RuntimeWarning, stacklevel=2)
            continue
        for found, wanted in zip(outputs, expected, strict=True):
            for (output, array), reference in zip(found.items(), wanted, strict=True):
                values = _compare(array, reference)
                what = f"{path.name} on {name}: output {output} differs from {original}"
                _enforce(what, values, reference.ndim == 4)
                _merge(figures.setdefault(output, {}), values)
        engine.close()
        report[engine.key] = figures
    return report


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


def _run_module(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        results = module(*(torch.from_numpy(array) for array in arrays.values()))
    return [result.numpy() for result in (results if isinstance(results, tuple) else (results,))]


def _compare(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    if found.shape != reference.shape or not np.isfinite(found).all():
        return {"max_abs": float("inf"), "relative": float("inf"), "cosine": -1.0}
    error = float(np.abs(found - reference).max(initial=0.0))
    largest = float(np.abs(reference).max(initial=0.0))
    axes = (-2, -1) if reference.ndim == 4 else (-1,)
    a, b = found.astype(np.float64), reference.astype(np.float64)
    lengths = np.sqrt((a * a).sum(axes) * (b * b).sum(axes))
    cosine = np.divide((a * b).sum(axes), lengths, out=np.ones_like(lengths), where=lengths > 0)
    return {
        "max_abs": error,
        "relative": error / largest if largest else error,
        "cosine": float(cosine.min(initial=1.0)),
    }


def _merge(total: dict[str, float], values: Mapping[str, float]) -> None:
    for key, value in values.items():
        worst = min if key == "cosine" else max
        total[key] = worst(total.get(key, value), value)


def _enforce(what: str, values: Mapping[str, float], maps: bool) -> None:
    if values["cosine"] < COSINE_LIMIT or (maps and values["relative"] > RELATIVE_LIMIT):
        raise ExportError(
            f"{what}: cosine {values['cosine']:.7f} (at least {COSINE_LIMIT}), relative error "
            f"{values['relative']:.1e}{f' (at most {RELATIVE_LIMIT:.0e})' if maps else ''}; "
            "try another version of torch or of the engine"
        )
