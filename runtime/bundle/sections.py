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
# The region section's keys that are off by default: which regions get a crop of their own.
BUDGET = ("share_iou", "min_objectness", "max_regions")


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


class RegionSection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a region becomes a crop of `crop_size` pixels, and which regions are worth one: all, as published.

    The rest is the region budget. Masks are taken in order of their objectness (`docs/regions.md`), the highest first.
    share_iou: a region whose thresholded mask overlaps that of one before by at least this IoU takes over its
    embedding. min_objectness: masks below it are dropped, except for the best. max_regions: so many crops of an image
    are encoded at most; masks after them that share no embedding are dropped. A dropped mask counts as the published
    method counts an empty one: it is no region, and by the ensemble's rule its query votes without CLIP; if CLIP alone
    votes, it has no vote.
    """

    mask_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)]
    mask_fill: Literal["mean", "zero"]
    expand_ratio: Annotated[float, msgspec.Meta(ge=0.01, le=100)]
    matting: bool
    crop_size: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    share_iou: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    min_objectness: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    max_regions: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None

    @property
    def budgeted(self) -> bool:
        """Whether any region may go without a crop of its own."""
        return self.share_iou is not None or self.min_objectness > 0 or self.max_regions is not None

    @property
    def budget(self) -> str:
        """The budget in words, as `--set` takes it: "share_iou=0.9 min_objectness=0.05"; "none" without one."""
        given = {name: getattr(self, name) for name in BUDGET}
        return " ".join(f"{name}={value:g}" for name, value in given.items() if value) or "none"


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
