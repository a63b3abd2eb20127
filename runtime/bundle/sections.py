"""The sections of settings that a configuration and a bundle's manifest share."""

from typing import Annotated, Literal

import msgspec

# Pixels of a side: padded, two such sides are just within what the image kernels address (2^31 pixels).
Side = Annotated[int, msgspec.Meta(ge=1, le=32768)]
# Of colours from 0 to 255, and from 0 to 1; float32 divides by a deviation.
Mean255 = Annotated[float, msgspec.Meta(ge=0, le=255)]
Deviation255 = Annotated[float, msgspec.Meta(ge=1e-3, le=255)]
Mean = Annotated[float, msgspec.Meta(ge=0, le=1)]
Deviation = Annotated[float, msgspec.Meta(ge=1e-5, le=1)]


class InputSection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an image becomes the proposal network's input; sizes in pixels, mean and std in 0..255, RGB.

    The shorter side becomes min_size, unless the longer one would exceed max_size, and both are padded to multiples of
    divisor. With `size` (height, width), for networks that take one size only, these three do not count: an image is
    made as large as fits and padded to it, or, with `fit` "stretch", becomes exactly that size whatever its shape.
    """

    min_size: Side
    max_size: Side
    divisor: Annotated[int, msgspec.Meta(ge=32, le=1024, multiple_of=32)]
    mean: tuple[Mean255, Mean255, Mean255]
    std: tuple[Deviation255, Deviation255, Deviation255]
    size: tuple[Side, Side] | None = None
    fit: Literal["pad", "stretch"] = "pad"


class RegionSection(msgspec.Struct, frozen=True, kw_only=True):
    """How a region becomes a crop of `crop_size` pixels."""

    mask_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)]
    mask_fill: Literal["mean", "zero"]
    expand_ratio: Annotated[float, msgspec.Meta(ge=0.01, le=100)]
    matting: bool
    crop_size: Annotated[int, msgspec.Meta(ge=1, le=4096)]


class RegionSpec(RegionSection, frozen=True, kw_only=True):
    """The same plus the mean and std, 0..1, RGB, that the image encoder was trained with.

    `patch_grid`: patches along a side of the crop where the image encoder also takes a region's patch mask (mask
    prompts); 0 where it takes crops alone.
    """

    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]
    patch_grid: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0


class EnsembleSection(msgspec.Struct, frozen=True, kw_only=True):
    """How query and region evidence are combined: query^weight * region^(1 - weight) for classes seen in training, with
    the exponents swapped for others. A weight of 0 or less means regions only. Without `seen_rule` every class counts
    as one of the others."""

    enabled: bool
    weight: Annotated[float, msgspec.Meta(ge=-1, le=1)]
    temperature: Annotated[float, msgspec.Meta(ge=1e-3, le=1e6)]
    seen_rule: bool = True
