"""The one-stage baseline: a fully convolutional network that gives every pixel an embedding, without any mask.

Module names are the state_dict keys of MaskFormer's per-pixel head: the pixel decoder, then a 1x1 convolution.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vocabseg.export.model.maskformer import PixelDecoder, ProposalNetwork, ProposalSizes
from vocabseg.export.model.resnet import ResNet, ResNetSizes, read_resnet_sizes


def read_pixel_sizes(shapes: Mapping[str, Sequence[int]]) -> ProposalSizes:
    """Sizes read off the tensors; `class_layers` holds the width of the embeddings. KeyError if one is missing."""
    prefix, decoder = "backbone.", "sem_seg_head.pixel_decoder."
    return ProposalSizes(
        backbone=read_resnet_sizes(
            {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        ),
        pixel=shapes[decoder + "layer_4.weight"][0],
        mask=shapes[decoder + "mask_features.weight"][0],
        class_layers=(shapes["sem_seg_head.predictor.weight"][0],),
    )


class AnySizePixelDecoder(PixelDecoder):
    """The pixel decoder for images of any size: a map is enlarged to the size of the next one, not always doubled."""

    def enlarge(self, y: Tensor, lateral: Tensor) -> Tensor:
        return functional.interpolate(y, size=lateral.shape[-2:], mode="nearest")


class PixelHead(nn.Module):
    def __init__(self, sizes: ProposalSizes):
        super().__init__()
        self.pixel_decoder = AnySizePixelDecoder(sizes)
        self.predictor = nn.Conv2d(sizes.mask, sizes.class_layers[-1], 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.predictor(self.pixel_decoder(features))


class PixelNetwork(nn.Module):
    """Normalised image (B, 3, h, w) float32 of any size -> embeddings (B, D, ceil(h/4), ceil(w/4)), not normalised.

    The image is not padded. The embeddings are to be enlarged four times, bilinearly, and cut to the image's size.
    """

    def __init__(self, sizes: ProposalSizes):
        super().__init__()
        self.sizes = sizes
        assert isinstance(sizes.backbone, ResNetSizes)
        self.backbone = ResNet(sizes.backbone)
        self.sem_seg_head = PixelHead(sizes)

    def forward(self, image: Tensor) -> Tensor:
        return self.sem_seg_head(self.backbone(image))


# What finds things in an image: masks, or an embedding for every pixel.
Network = ProposalNetwork | PixelNetwork


def network_on_meta(sizes: ProposalSizes, per_pixel: bool) -> Network:
    """A network of these sizes without weights."""
    with torch.device("meta"):
        return PixelNetwork(sizes) if per_pixel else ProposalNetwork(sizes)
