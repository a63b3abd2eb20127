"""The one-stage baseline in plain PyTorch, float32: what the runtime's per-pixel path is compared with.

SPEC: the network's map is enlarged four times and cut to the resized image, enlarged to the original image, and there
each pixel's embedding is normalised and compared with the names. Nothing here is shared with the runtime, nor done to
save time or memory: the enlarged embeddings (D, H, W) are in memory at once.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vocabseg.export.checkpoint.load import Model
from vocabseg.export.configuration import Configuration
from vocabseg.export.reference import embed_names, resize_shortest_edge


class PixelReference:
    """A per-pixel model and its configuration, ready to segment."""

    def __init__(self, model: Model, configuration: Configuration):
        self.model, self.configuration = model, configuration
        self.image_tower = model.region_clip.make_image_tower(configuration.region.crop_size)

    @torch.inference_mode()
    def class_scores(self, image: np.ndarray, names: Sequence[str], seen: Sequence[bool] | None = None) -> Tensor:
        """Probabilities (K, H, W) of the named classes at every pixel of an image (H, W, 3) uint8 RGB.

        `seen` says which classes were trained on (None: none). With an ensemble weight below 0, CLIP's distribution of
        the whole image, the same everywhere.
        """
        settings, ensemble = self.configuration.input, self.configuration.ensemble
        picture = torch.tensor(resize_shortest_edge(image, settings)).permute(2, 0, 1).float()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (settings.mean, settings.std))
        maps = self.model.proposal(((picture - mean) / std)[None])
        full = functional.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)
        seen_size = full[:, :, : picture.shape[1], : picture.shape[2]]
        given = functional.interpolate(seen_size, size=image.shape[:2], mode="bilinear", align_corners=False)[0]
        text = embed_names(names, self.model.query_clip, self.configuration.prompt.query, self.model.query_prompt)
        cosine = torch.einsum("kd,dhw->khw", text, functional.normalize(given, dim=0))
        pixels = (ensemble.temperature * cosine).softmax(dim=0)
        if not ensemble.enabled:
            return pixels
        whole = (ensemble.temperature * text @ self._embed(picture)).softmax(dim=0)[:, None, None].expand_as(pixels)
        weight = ensemble.weight
        if weight < 0:
            return whole
        flags = torch.zeros(len(text)) if seen is None else torch.tensor([float(flag) for flag in seen])
        flags = flags[:, None, None]
        return flags * pixels**weight * whole ** (1 - weight) + (1 - flags) * pixels ** (1 - weight) * whole**weight

    def _embed(self, picture: Tensor) -> Tensor:
        """CLIP's embedding (D,) of length 1 of a whole picture (3, h, w) in 0..255, resized to one crop."""
        clip, side = self.model.region_clip, self.configuration.region.crop_size
        mean, std = (255.0 * torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
        crop = functional.interpolate(
            ((picture - mean) / std)[None], size=(side, side), mode="bicubic", align_corners=False
        )
        return functional.normalize(self.image_tower(crop)[0], dim=-1)
