"""The sections of settings that a configuration and a bundle's manifest share."""

from typing import Annotated, Literal

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0)]


class InputSection(msgspec.Struct, frozen=True, kw_only=True):
    """How an image becomes the proposal network's input; sizes in pixels, mean and std in 0..255, RGB."""

    min_size: Annotated[int, msgspec.Meta(ge=1)]
    max_size: Annotated[int, msgspec.Meta(ge=1)]
    divisor: Annotated[int, msgspec.Meta(ge=32, multiple_of=32)]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]


class RegionSection(msgspec.Struct, frozen=True, kw_only=True):
    """How a region becomes a crop of `crop_size` pixels."""

    mask_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)]
    mask_fill: Literal["mean", "zero"]
    expand_ratio: Positive
    matting: bool
    crop_size: Annotated[int, msgspec.Meta(ge=1)]


class RegionSpec(RegionSection, frozen=True, kw_only=True):
    """The same plus the mean and std, 0..1, RGB, that the image encoder was trained with."""

    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]


class EnsembleSection(msgspec.Struct, frozen=True, kw_only=True):
    """How query and region evidence are combined: query^weight * region^(1 - weight) for classes seen in training, with
    the exponents swapped for others. A weight of 0 or less means regions only."""

    enabled: bool
    weight: Annotated[float, msgspec.Meta(le=1)]
    temperature: Positive
