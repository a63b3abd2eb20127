"""What the graphs are checked on: random numbers, and what a real photo and real names become on their way in."""

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vocabseg.export.configuration import Configuration
from vocabseg.runtime.bundle.manifest import PromptSpec
from vocabseg.runtime.bundle.sections import RegionSpec
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.segmenter.host_stages import HostStages
from vocabseg.runtime.text.prompts import token_sequences
from vocabseg.runtime.text.tokenizer import Tokenizer

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

    def __init__(self, pixels: np.ndarray, configuration: Configuration, region: RegionSpec, proposal: nn.Module):
        try:
            kernels = load_kernels()
        except EngineError:
            kernels = load_kernels("reference")

        def run(graph: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
            with torch.no_grad():
                masks, queries = proposal(torch.from_numpy(inputs["image"]))
            return {"mask_logits": masks.numpy(), "query_embeddings": queries.numpy()}

        self._stages = HostStages(configuration.input, region, run, kernels)
        self._prepared = self._stages.prepare(pixels)

    @property
    def network_input(self) -> np.ndarray:
        """(1, 3, Hp, Wp) float32."""
        return self._prepared.network_input

    def crops(self) -> np.ndarray:
        """Crops (V, 3, S, S) of the first regions that the network finds; V is at most 8 and may be 0."""
        proposals = self._stages.propose(self._prepared)
        self._stages.describe(proposals)
        return self._stages.crops_of(proposals, range(CROPS))


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
