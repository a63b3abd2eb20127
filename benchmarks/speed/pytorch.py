"""PyTorch as a variant: the reference in plain float32, and the same modules compiled."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.benchmarks.speed.results import BOXES_AND_CROPS, CLASSIFY_AND_COMPOSE
from vocabseg.benchmarks.speed.variants import Capture, TimedRun, lead, variant_name
from vocabseg.runtime.images import load_image
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.runtime.threads import thread_count

if TYPE_CHECKING:
    from vocabseg.export.configuration import Configuration
    from vocabseg.export.reference import ReferenceOutput, ReferenceSegmenter

STAGES = ("decode", "resize_normalize", "proposal", BOXES_AND_CROPS, "image_encoder", CLASSIFY_AND_COMPOSE)


@dataclass(frozen=True)
class Weights:
    """The PyTorch weights a bundle was made of: a checkpoint, or else random weights, which can be drawn again."""

    configuration: "Configuration"
    checkpoint: Path | None
    clip_source: str | None = None

    def load(self) -> "ReferenceSegmenter":
        """The model, ready to segment; raises CheckpointError or ConfigurationError."""
        from vocabseg.export.checkpoint.load import load_model, read_state_dict
        from vocabseg.export.checkpoint.published import random_state_dict
        from vocabseg.export.reference import ReferenceSegmenter

        tensors = random_state_dict(self.configuration) if self.checkpoint is None else read_state_dict(self.checkpoint)
        return ReferenceSegmenter(load_model(tensors, self.configuration, self.clip_source), self.configuration)


@dataclass(frozen=True)
class TorchSpec:
    """The reference with these weights, plain or compiled."""

    weights: Weights
    precision: str
    vocabulary: Vocabulary
    compiled: bool = False
    device: str = "cpu"
    limit: str = ""

    @property
    def name(self) -> str:
        """The name, with its limit, and the precision where that is not the usual one."""
        return variant_name("torch-compile" if self.compiled else "torch-eager", self.precision, self.limit)

    def open(self) -> "TorchVariant":
        """Load the weights, and compile the networks when they first run."""
        return TorchVariant(self)


class TorchVariant:
    """`export/reference.py`, timed between its networks."""

    def __init__(self, spec: TorchSpec):
        import torch

        torch.set_num_threads(thread_count())
        self.spec = spec
        self._no_gradients = torch.no_grad
        self._synchronise: Callable[[], None] = lambda: None
        self.reference = spec.weights.load()
        if spec.device != "cpu":
            self._move(torch)
        self._proposal = self._network(self.reference.model.proposal)
        tower = self._network(self.reference.image_tower)
        self.reference.image_tower = partial(self._encode, tower)
        with torch.inference_mode():
            self._text = self.reference.text_embeddings(spec.vocabulary.names)
        self._encoding = (0.0, 0.0)

    def _move(self, torch: Any) -> None:
        """The model to the GPU, and all that the reference makes from now on, in true float32."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        device = torch.device(self.spec.device)
        torch.cuda.set_device(device)
        model = self.reference.model
        for module in (model.proposal, model.query_clip.module, model.region_clip.module, self.reference.image_tower):
            for tensor in (*module.parameters(), *module.buffers()):
                if not tensor.is_meta:  # open_clip's own attention mask is never filled: the text towers make theirs
                    tensor.data = tensor.data.to(device)
        prompts = [
            prompt and replace(prompt, prefix=prompt.prefix.to(device), suffix=prompt.suffix.to(device))
            for prompt in (model.query_prompt, model.region_prompt)
        ]
        self.reference.model = replace(
            model,
            query_prompt=prompts[0],
            region_prompt=prompts[1],
            non_object_embedding=model.non_object_embedding.to(device),
        )
        torch.set_default_device(device)
        self._synchronise = torch.cuda.synchronize

    def _network(self, module: Any) -> Callable[..., Any]:
        import torch

        run: Any = module
        compiled, on_gpu = self.spec.compiled, self.spec.device != "cpu"
        if compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True
            run = torch.compile(module, mode="max-autotune") if on_gpu else torch.compile(module)
        half, dtype = self.spec.precision != "float32", getattr(torch, self.spec.precision)

        def float32(output: Any) -> Any:
            # A copy, because compiled networks on a GPU share their buffers: the next one that runs writes over them.
            return output.to(torch.float32, copy=compiled and on_gpu)

        def network(*inputs: Any) -> Any:
            # Freezing needs no_grad; tensors made under inference_mode would need a compilation of their own.
            kind = "cuda" if on_gpu else "cpu"
            with torch.no_grad(), torch.autocast(kind, dtype if half else torch.bfloat16, enabled=half):
                outputs = run(*inputs)
            return tuple(map(float32, outputs)) if isinstance(outputs, tuple) else float32(outputs)

        return network

    def _now(self) -> float:
        """The clock in seconds, once the device is at rest."""
        self._synchronise()
        return time.perf_counter()

    def _encode(self, tower: Callable[..., Any], *inputs: Any) -> Any:
        begin = self._now()
        features = tower(*inputs)
        self._encoding = (begin, self._now())
        return features

    def run(self, image: Path) -> TimedRun:
        """Segment one image, timed."""
        with self._no_gradients():
            output, _, times = self._segment(image)
        stages = dict(zip(STAGES, np.diff(times).tolist(), strict=True))
        return TimedRun(stages, times[-1] - times[0], len(output.boxes), len(output.boxes))

    def device_memory(self) -> int:
        """The most bytes of the GPU that PyTorch held."""
        import torch

        return int(torch.cuda.max_memory_reserved())

    def many(self, images: Sequence[Path]) -> float:
        """Seconds of the images one by one: in the published padded batch their results would change."""
        begin = self._now()
        for image in images:
            self.run(image)
        return self._now() - begin

    def labels(self, image: Path) -> np.ndarray:
        """The label map (H, W) int32."""
        with self._no_gradients():
            return _host(self._segment(image)[0].labels).astype(np.int32)

    def text(self, names: Sequence[str]) -> float:
        """Seconds for both sides' prompts."""
        begin = self._now()
        self.reference.text_embeddings(names)
        return self._now() - begin

    def capture(self, image: Path) -> Capture:
        """Segment one image and keep everything."""
        with self._no_gradients():
            output, network_input, _ = self._segment(image)
            return self._captured(output, network_input, output.mask_logits, output.query_embeddings)

    def capture_from(self, image: Path, given: Capture) -> Capture:
        """Every stage on its own, fed with what `given` has."""
        import torch

        with self._no_gradients():
            pixels = load_image(image)
            _, network_input = self._input(pixels)
            masks, queries = self._proposal(torch.tensor(given.network_input))
            output = self._classify(
                pixels, given.resized, torch.tensor(given.mask_logits), torch.tensor(given.query_embeddings)
            )
            return self._captured(output, network_input, masks[0], queries[0])

    def _input(self, pixels: np.ndarray) -> tuple[np.ndarray, Any]:
        from vocabseg.export.reference import normalise_and_pad, resize_shortest_edge

        resized = resize_shortest_edge(pixels, self.reference.configuration.input)
        return resized, normalise_and_pad([resized], self.reference.configuration.input)

    def _segment(self, image: Path) -> tuple["ReferenceOutput", Any, list[float]]:
        """What the reference found, the network input, and the moments at which STAGES begin and end."""
        times = [self._now()]
        pixels = load_image(image)
        times.append(self._now())
        resized, network_input = self._input(pixels)
        times.append(self._now())
        masks, queries = self._proposal(network_input)
        times.append(self._now())
        self._encoding = (times[-1], times[-1])  # unless there are crops
        output = self._classify(pixels, resized, masks[0], queries[0])
        return output, network_input, [*times, *self._encoding, self._now()]

    def _classify(self, pixels: np.ndarray, resized: np.ndarray, masks: Any, queries: Any) -> "ReferenceOutput":
        seen = self.spec.vocabulary.seen
        flags = None if seen is None else [bool(flag) for flag in seen]
        return self.reference.classify(pixels, resized, masks, queries, self._text, flags)

    def _captured(self, output: "ReferenceOutput", network_input: Any, masks: Any, queries: Any) -> Capture:
        valid = _host(output.valid)
        everyone = len(output.class_probabilities) == len(valid)
        return Capture(
            resized=output.resized,
            network_input=_host(network_input),
            mask_logits=_host(masks),
            query_embeddings=_host(queries),
            valid=valid,
            boxes=_host(output.boxes).astype(np.int32),
            crops=None if output.crops is None else _host(output.crops),
            embeddings=None if output.region_embeddings is None else _host(output.region_embeddings),
            probabilities=_host(output.class_probabilities),
            voters=np.arange(len(valid)) if everyone else np.flatnonzero(valid),
            labels=_host(output.labels).astype(np.int32),
            margin=lead(_host(output.class_scores)),
            patch_masks=None if output.patch_masks is None else _host(output.patch_masks),
        )


def _host(tensor: Any) -> np.ndarray:
    return tensor.cpu().numpy()
