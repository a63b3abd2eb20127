"""Profiles, the sizes that a plan is built for: a bundle's defaults, and those of the command line."""

import re
from collections.abc import Iterable, Mapping, Sequence

from vocabseg.runtime.bundle.manifest import GraphRecord, Manifest, TensorRecord
from vocabseg.runtime.bundle.plans import Profile, Range
from vocabseg.runtime.bundle.settings import nearest
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.kernels.geometry import padded_size, resized_size

SYNTAX = (
    "write GRAPH:INPUT=MIN,OPT,MAX, such as image_encoder:crops=1,64,128 or proposal:image=1x64x64,1x64x96,1x64x256"
)

# Photographs are mostly 4:3, in either direction.
USUAL_ASPECT = (3, 4)
# Batches of prompts: from one name with one template to a chunk of the text embedder.
TEXT_BATCHES = (1, 64, 256)
# The image encoder is tuned for the regions of one image, rounded up to a multiple that suits tensor cores; it takes up
# to twice as many.
CROP_STEP = 32

# Dimension name -> (min, opt, max).
Sizes = dict[str, tuple[int, int, int]]


def default_profiles(manifest: Manifest, graph: str, record: GraphRecord) -> list[Profile]:
    """The profiles of a graph for every image and vocabulary that the bundle's settings allow.

    The proposal network gets two, for landscape and portrait images; each is tuned for 4:3. With input.size, it gets
    one of that size.
    """
    if graph == "proposal":
        if manifest.input.size is None:
            return [make_profile(record, sizes) for sizes in _image_sizes(manifest)]
        high, wide = manifest.input.size
        return [make_profile(record, {"batch": (1, 1, 1), "height": (high,) * 3, "width": (wide,) * 3})]
    if graph == "image_encoder":
        proposal = manifest.graphs.get("proposal")
        queries = None if proposal is None else proposal.outputs[0].shape[1]
        usual = -(-queries // CROP_STEP) * CROP_STEP if isinstance(queries, int) else 4 * CROP_STEP
        return [make_profile(record, {"batch": (1, usual, 2 * usual)})]
    return [make_profile(record, {"batch": TEXT_BATCHES})]


def _image_sizes(manifest: Manifest) -> list[Sizes]:
    """Landscape and portrait. The shorter side is min_size, unless the longer one would then exceed max_size."""
    spec = manifest.input
    high, wide = USUAL_ASPECT
    short, long = padded_size(*resized_size(high * 1000, wide * 1000, spec.min_size, spec.max_size), spec.divisor)
    square, largest = padded_size(min(spec.min_size, spec.max_size), spec.max_size, spec.divisor)
    shorter = (spec.divisor, short, square)
    longer = (square, long, largest)
    return [
        {"batch": (1, 1, 1), "height": shorter, "width": longer},
        {"batch": (1, 1, 1), "height": longer, "width": shorter},
    ]


def make_profile(record: GraphRecord, sizes: Sizes) -> Profile:
    """The profile of all inputs of a graph, from the sizes of its dynamic dimensions by name."""
    return {tensor.name: _range(tensor, sizes) for tensor in record.inputs}


def _range(tensor: TensorRecord, sizes: Sizes) -> Range:
    low, tuned, high = (
        [part if isinstance(part, int) else sizes[part][which] for part in tensor.shape] for which in range(3)
    )
    return Range(min=low, opt=tuned, max=high)


def choose_profiles(
    manifest: Manifest, graphs: Mapping[str, GraphRecord], options: Iterable[str]
) -> dict[str, list[Profile]]:
    """Graph -> profiles: those of `options` (in the form of `SYNTAX`), and the defaults for the other graphs.

    Several options for one graph give several profiles. Sizes are those of the dynamic dimensions in order, or of all
    dimensions; other inputs of the graph get theirs by the dimensions' names. Raises ConfigurationError.
    """
    chosen: dict[str, list[Profile]] = {}
    for option in options:
        graph, profile = _parse(manifest, graphs, option)
        chosen.setdefault(graph, []).append(profile)
    return {
        name: chosen[name] if name in chosen else default_profiles(manifest, name, record)
        for name, record in graphs.items()
    }


def _parse(manifest: Manifest, graphs: Mapping[str, GraphRecord], option: str) -> tuple[str, Profile]:
    match = re.fullmatch(r"\s*([^:=\s]+):([^:=\s]+)=(.+)", option)
    if match is None:
        raise ConfigurationError(f"--profile {option!r} cannot be read: {SYNTAX}")
    graph, name, text = match.groups()
    if graph not in graphs:
        raise ConfigurationError(f"--profile {option!r}: no graph {graph!r} is built; {nearest(graph, graphs)}")
    record = graphs[graph]
    tensor = next((tensor for tensor in record.inputs if tensor.name == name), None)
    if tensor is None:
        names = [tensor.name for tensor in record.inputs]
        raise ConfigurationError(f"--profile {option!r}: {graph} has no input {name!r}; {nearest(name, names)}")
    parts = text.split(",")
    if len(parts) != 3:
        raise ConfigurationError(f"--profile {option!r} has {len(parts)} sizes, needed are MIN,OPT,MAX: {SYNTAX}")
    low, tuned, high = (_sizes(tensor, part, option) for part in parts)
    sizes: Sizes = {}
    for dimension in low:
        span = (low[dimension], tuned[dimension], high[dimension])
        if not span[0] <= span[1] <= span[2]:
            raise ConfigurationError(f"--profile {option!r}: {dimension} {','.join(map(str, span))} must not decrease")
        if dimension in ("height", "width") and any(size % manifest.input.divisor for size in span):
            raise ConfigurationError(
                f"--profile {option!r}: {dimension} must be a multiple of {manifest.input.divisor}, like every image"
            )
        sizes[dimension] = span
    return graph, make_profile(record, sizes)


def _sizes(tensor: TensorRecord, text: str, option: str) -> dict[str, int]:
    """Dimension name -> size, from "1x640x864" (the dynamic ones) or "1x3x640x864" (all)."""
    words = text.strip().lower().split("x")
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", word) for word in words):
        raise ConfigurationError(
            f"--profile {option!r}: {text.strip()!r} is no size; give whole numbers from 1 on: {SYNTAX}"
        )
    numbers = [int(word) for word in words]
    dynamic = [part for part in tensor.shape if isinstance(part, str)]
    if len(numbers) == len(dynamic):
        return dict(zip(dynamic, numbers, strict=True))
    if len(numbers) != len(tensor.shape):
        raise ConfigurationError(
            f"--profile {option!r}: {text.strip()!r} has {len(numbers)} sizes, {tensor.name} has the dynamic "
            f"dimensions {' x '.join(dynamic)} (all: {' x '.join(map(str, tensor.shape))})"
        )
    for part, number in zip(tensor.shape, numbers, strict=True):
        if isinstance(part, int) and part != number:
            raise ConfigurationError(
                f"--profile {option!r}: {text.strip()!r} has {number} where {tensor.name} has {part}"
            )
    return {part: number for part, number in zip(tensor.shape, numbers, strict=True) if isinstance(part, str)}


def describe_profiles(profiles: Sequence[Profile]) -> list[str]:
    """A line per profile and input: the smallest, the tuned and the largest shape."""
    return [
        f"{name} {_times(limits.min)} .. {_times(limits.max)}, tuned for {_times(limits.opt)}"
        for profile in profiles
        for name, limits in profile.items()
    ]


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
