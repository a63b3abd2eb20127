"""Masks: mask logits and their sizes, as passed between networks, kernels and results."""

from dataclasses import dataclass, replace
from typing import Any

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Masks:
    """N masks of one image, as output by the proposal network.

    Attributes:
        logits: (N, hm, wm) float32, on a GPU also float16, one map per mask; a NumPy or device array.
        padded_size: (Hp, Wp), the area that the maps cover.
        image_size: (h, w) of the image as the networks see it, the top left part of the padded one.
        output_size: (H, W) of the original image.
    """

    logits: Any
    padded_size: Size
    image_size: Size
    output_size: Size

    def __len__(self) -> int:
        return int(self.logits.shape[0])

    def __getitem__(self, which: Any) -> "Masks":
        return replace(self, logits=self.logits[which])
