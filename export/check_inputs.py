"""What the graphs are checked on: random numbers, and what a real photo and real names become on their way in."""

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vocabseg.export.config import Configuration
from vocabseg.runtime.bundle import PromptSpec, RegionSpec
from vocabseg.runtime.crops import cut_crops
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.geometry import padded_size, resized_size
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.prompts import token_sequences
from vocabseg.runtime.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]

NAMES = ("cat", "grass", "potted plant", "wall-brick")
CROPS = 8
SEED = 20211229  # any fixed number: the same export has the same figures


def sample_pixels(path: str | Path | None) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the user's photo, or this package's own (Chelsea the cat, by Stéfan van der Walt, CC0)."""
    if path is not None:
        return load_image(path)
    with as_file(files("vocabseg.export") / "sample.jpg") as own:
        return load_image(own)


class Photo:
    """A photo on its way through the model: the proposal network's input and, once it has run, the regions' crops."""

    def __init__(self, pixels: np.ndarray, configuration: Configuration):
        spec = configuration.input
        self.size = resized_size(pixels.shape[0], pixels.shape[1], spec.min_size, spec.max_size)
        self.padded = padded_size(*self.size, spec.divisor)
        try:
            self.kernels = load_kernels()
        except EngineError:
            self.kernels = load_kernels("reference")
        self.network_input, self.resized = self.kernels.resize_normalize(
            pixels, self.size, self.padded, spec.mean, spec.std
        )

    def crops(self, proposal: nn.Module, spec: RegionSpec) -> np.ndarray:
        """Crops (V, 3, S, S) of the first regions that the network finds; V is at most 8 and may be 0."""
        with torch.no_grad():
            masks = proposal(torch.from_numpy(self.network_input))[0][0].numpy()
        boxes, areas = self.kernels.region_boxes(masks, self.padded, self.size, spec.mask_threshold)
        chosen = np.flatnonzero(areas)[:CROPS]
        return cut_crops(self.kernels, spec, self.resized, masks, self.padded, boxes[chosen], chosen)


def proposal_inputs(photo: Photo) -> list[Arrays]:
    """Noise in two sizes and two batch sizes, and the photo."""
    return [{"image": _noise(1, 3, 64, 96)}, {"image": _noise(2, 3, 160, 128)}, {"image": photo.network_input}]


def image_inputs(crops: np.ndarray) -> list[Arrays]:
    """Noise in two batch sizes, and the crops of real regions where there are any."""
    size = crops.shape[-1]
    inputs = [{"crops": _noise(1, 3, size, size)}, {"crops": _noise(3, 3, size, size)}]
    return [*inputs, {"crops": crops}] if len(crops) else inputs


def text_inputs(tokenizer: Tokenizer, prompts: Sequence[PromptSpec], id_count: int) -> list[Arrays]:
    """Random token ids below `id_count` in two batch sizes, and some class names in each of the prompts."""
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


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
