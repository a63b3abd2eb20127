"""Measures a trained checkpoint on rendered scenes with PyTorch networks and the runtime's kernels.

    python examples/train_demo/evaluate.py --folder DIR --split test --count 500

`vocabseg evaluate` measures an exported bundle; this one serves while training, and to choose the ensemble's weight
(on the validation split; figures are reported on the test split).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from captions import Encoder
from clip_stage import CROP_SIZE, class_embeddings, make_clip
from torch.nn import functional

from vocabseg.benchmarks.scenes.world import CLASSES, SEEN, Scene, render_scene
from vocabseg.export.checkpoint.load import Model, load_model, read_state_dict
from vocabseg.export.configuration import Configuration, load_configuration
from vocabseg.runtime.kernels import load_kernels
from vocabseg.runtime.kernels.cropping import Cropping
from vocabseg.runtime.kernels.geometry import expand_boxes, padded_size, resized_size
from vocabseg.runtime.masks import Masks
from vocabseg.runtime.segmenter.classify import class_probabilities

Array = np.ndarray
CONFIGURATION = Path(__file__).parent / "demo.toml"


@dataclass
class Proposals:
    """What the networks say about one scene."""

    masks: Masks
    queries: Array
    valid: Array
    regions: Array


class Evaluator:
    """A loaded checkpoint and the world's whole vocabulary."""

    def __init__(self, checkpoint: Path, configuration: Configuration | None = None):
        self.configuration = configuration or load_configuration(str(CONFIGURATION))
        weights = read_state_dict(checkpoint)
        self.model: Model = load_model(weights, self.configuration)
        self.kernels = load_kernels()
        self.image_tower = self.model.region_clip.make_image_tower(CROP_SIZE)
        clip = make_clip().eval()
        prefix = "clip_adapter.clip_model."
        clip.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        prompt = self.configuration.prompt.query
        assert not isinstance(prompt, str)
        self.text = class_embeddings(clip, Encoder(), CLASSES, prompt)
        non_object = functional.normalize(self.model.non_object_embedding, dim=-1)
        self.query_text = torch.cat([self.text, non_object]).numpy()

    @torch.inference_mode()
    def propose(self, image: Array) -> Proposals:
        """The stages that do not depend on class names; image (H, W, 3) uint8 RGB."""
        settings, region = self.configuration.input, self.configuration.region
        size = resized_size(*image.shape[:2], settings.min_size, settings.max_size)
        padded = padded_size(*size, settings.divisor)
        pixels, resized = self.kernels.resize_normalize(image, size, padded, settings.mean, settings.std)
        logits, queries = (output[0].numpy() for output in self.model.proposal(torch.from_numpy(pixels)))
        masks = Masks(logits, padded, size, image.shape[:2])
        boxes, areas = self.kernels.region_boxes(masks, region.mask_threshold)
        valid = areas > 0
        indices = np.flatnonzero(valid).astype(np.int32)
        mean, std = (255 * np.float32(values) for values in (self.model.region_clip.mean, self.model.region_clip.std))
        boxes = expand_boxes(boxes[valid], region.expand_ratio, size)
        cropping = Cropping(region.mask_threshold, region.matting, mean, mean, std, region.crop_size)
        crops = self.kernels.crop_regions(resized, masks, boxes, indices, cropping)
        features = functional.normalize(self.image_tower(torch.from_numpy(crops)), dim=-1).numpy()
        return Proposals(masks, queries, valid, features)

    def labels(self, found: Proposals, weight: float, query_text: Array, region_text: Array) -> Array:
        """The label map (H, W) at one ensemble weight."""
        ensemble = msgspec.structs.replace(self.configuration.ensemble, weight=weight)
        probabilities = class_probabilities(
            found.queries, query_text, found.valid, found.regions, region_text, np.array(SEEN), ensemble
        )
        everyone = len(probabilities) == len(found.masks)
        return self.kernels.compose(found.masks if everyone else found.masks[found.valid], probabilities)[0]

    def measure(
        self, scenes: list[Scene], weights: list[float], shuffle: bool = False
    ) -> dict[float, dict[str, float]]:
        """mIoU in percent over seen and unseen classes and their harmonic mean, per ensemble weight."""
        count = len(CLASSES)
        confusion = {weight: np.zeros((count, count), np.int64) for weight in weights}
        query_text, region_text = self.query_text, self.text.numpy()
        if shuffle:
            order = np.random.default_rng(0).permutation(count)
            query_text, region_text = np.concatenate([query_text[order], query_text[-1:]]), region_text[order]
        for scene in scenes:
            found = self.propose(scene.image)
            for weight in weights:
                labels = self.labels(found, weight, query_text, region_text)
                pairs = labels.astype(np.int64) * count + scene.labels
                confusion[weight] += np.bincount(pairs.ravel(), minlength=count * count).reshape(count, count)
        return {weight: summarise(matrix) for weight, matrix in confusion.items()}


def summarise(confusion: Array) -> dict[str, float]:
    """Confusion (prediction, truth) -> the paper's figures in percent."""
    right, truth, given = np.diag(confusion).astype(float), confusion.sum(axis=0), confusion.sum(axis=1)
    iou = right / np.maximum(truth + given - right, 1)
    seen = np.array(SEEN)

    def mean(which: Array) -> float:
        return float(100 * iou[which & (truth > 0)].sum() / max((which & (truth + given > 0)).sum(), 1))

    known, novel = mean(seen), mean(~seen)
    harmonic = 2 / (1 / known + 1 / novel) if known and novel else 0.0
    accuracy = float(100 * right.sum() / max(confusion.sum(), 1))
    return {"mIoU": mean(seen | True), "seen": known, "unseen": novel, "hIoU": harmonic, "pAcc": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=float, nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shuffle", action="store_true", help="give the classes each other's text embeddings")
    parser.add_argument("--set", nargs="*", default=[], help="override an entry of demo.toml: section.key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    configuration = load_configuration(str(CONFIGURATION), arguments.set)
    evaluator = Evaluator(arguments.checkpoint or arguments.folder / "model.safetensors", configuration)
    scenes = [render_scene(arguments.seed, arguments.split, index) for index in range(arguments.count)]
    weights = arguments.weights or [configuration.ensemble.weight]
    for weight, figures in evaluator.measure(scenes, weights, arguments.shuffle).items():
        print(f"weight {weight:.2f}  " + "  ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
