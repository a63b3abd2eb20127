"""What the pipeline needs of a bundle's graphs, and whether their files are what the manifest says of them."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vocabseg.runtime.bundle.manifest import QUERIES, GraphRecord, Manifest, TensorRecord
from vocabseg.runtime.bundle.outline import read_outline
from vocabseg.runtime.errors import BundleError

# Inputs and outputs by name, with their number of dimensions.
PROPOSAL = ({"image": 4}, {"mask_logits": 4, QUERIES: 3})
MASKS_ALONE = ({"image": 4}, {"mask_logits": 4})
PIXEL_ENCODER = ({"image": 4}, {"pixel_embeddings": 4})
IMAGE_ENCODER = ({"crops": 4}, {"image_features": 2})
PROMPTED_IMAGE_ENCODER = ({"crops": 4, "patch_mask": 3}, {"image_features": 2})
TEXT_ENCODER = ({"token_ids": 2, "eot_index": 1}, {"text_features": 2})
INTEGERS = ("token_ids", "eot_index")
FLOATS = ("float32", "float16")
# Weights lie beside the graph. With a slash, some names mean more than a file to ONNX Runtime and OpenVINO.
_WEIGHTS = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def check_contract(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError if the manifest lacks a graph, or describes one that fits neither the pipeline nor the rest."""
    prompts = manifest.prompts
    dense = "pixel_encoder" if manifest.per_pixel else "proposal"
    own = () if manifest.masks == "given" else (dense,)
    for needed in (*own, "image_encoder", prompts.query.graph, prompts.region.graph):
        if needed not in manifest.graphs:
            raise BundleError(f"bundle {folder} has no graph {needed!r}, which its manifest needs: export it again")
    if not own and "proposal" in manifest.graphs:
        raise BundleError(f"bundle {folder} has a graph 'proposal', but its masks are given: export it again")
    for precision, graphs in (("float32", manifest.graphs), *manifest.variants.items()):
        for name, record in graphs.items():
            problem = _problem(manifest, name, record)
            base = manifest.graphs.get(name, record)
            if not problem and _sizes(record) != _sizes(base):
                given = _listing([*record.inputs, *record.outputs])
                problem = f"has {given}, in float32 {_listing([*base.inputs, *base.outputs])}"
            if problem:
                raise BundleError(f"bundle {folder}: its graph {name} in {precision} {problem}: export it again")
    region = manifest.region
    if region.patch_grid > region.crop_size:
        raise BundleError(
            f"bundle {folder}: its region.patch_grid is {region.patch_grid}, but its crops have {region.crop_size} "
            "pixels a side: export it again"
        )
    sides = [(dense, prompts.query.graph)] if manifest.has_queries or manifest.per_pixel else []
    for vision, text in (*sides, ("image_encoder", prompts.region.graph)):
        widths = [_width(name, manifest.graphs[name]) for name in (vision, text)]
        if widths[0] != widths[1]:
            raise BundleError(
                f"bundle {folder}: its graph {vision} gives embeddings of {widths[0]} values, {text} of {widths[1]}: "
                "export it again"
            )
    problem = input_problem(manifest)
    if problem:
        raise BundleError(f"bundle {folder}: {problem}")


def input_problem(manifest: Manifest) -> str | None:
    """What keeps the bundle's networks from taking images of its manifest's input section, in one line, else None."""
    record, given = manifest.graphs.get("proposal"), manifest.input
    if manifest.per_pixel and given.size is not None and given.fit == "pad":
        return (
            f"input.size {list(given.size)} pads images to that size, which a per-pixel model does not take: leave it "
            "out, or set input.fit=stretch"
        )
    if record is None:
        return None
    sizes = record.inputs[0].shape[2:]
    if any(isinstance(size, int) for size in sizes) and list(given.size or ()) != sizes:
        listed = "none" if given.size is None else list(given.size)
        return f"the proposal network takes images of {sizes} pixels alone, but input.size is {listed}: set it to these"
    dynamic = all(isinstance(size, str) for size in sizes)
    if dynamic and any(size % given.divisor for size in given.size or ()):
        return f"input.size {list(given.size or ())} must be multiples of input.divisor {given.divisor}: set others"
    return None


def check_graph(folder: Path, record: GraphRecord) -> None:
    """Raise BundleError for a file that is no graph, has other inputs or outputs than its record, or other weights."""
    path = folder / record.file
    if path.suffix != ".onnx":  # to OpenVINO the suffix is the format, and other formats bring files of their own
        raise BundleError(f"{path} is listed as a graph, but graphs end in .onnx: do not use this bundle")
    try:
        outline = read_outline(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is no ONNX graph ({error}): export the bundle again") from None
    place = PurePosixPath(record.file).parent
    listed = {external.file for external in record.external}
    for location in sorted(outline.locations):
        if not _WEIGHTS.fullmatch(location) or str(place / location) not in listed:
            raise BundleError(
                f"{path} has weights in {location[:80]!r}, which the manifest does not list: do not use this bundle"
            )
    for what, found, said in (("inputs", outline.inputs, record.inputs), ("outputs", outline.outputs, record.outputs)):
        if [_fixed(tensor) for tensor in found] != [_fixed(tensor) for tensor in said]:
            raise BundleError(
                f"{path} has the {what} {_listing(found)}, but the manifest says {_listing(said)}: export the bundle "
                "again"
            )


def _problem(manifest: Manifest, name: str, record: GraphRecord) -> str | None:
    """What is wrong with a graph's description, as the end of a sentence."""
    text = dict.fromkeys((manifest.prompts.query.graph, manifest.prompts.region.graph), TEXT_ENCODER)
    grid = manifest.region.patch_grid
    vision = {
        "proposal": PROPOSAL if any(output.name == QUERIES for output in record.outputs) else MASKS_ALONE,
        "pixel_encoder": PIXEL_ENCODER,
        "image_encoder": PROMPTED_IMAGE_ENCODER if grid else IMAGE_ENCODER,
    }
    due = {**text, **vision}.get(name)
    if due is None:
        return None
    for what, tensors, ranks in zip(("inputs", "outputs"), (record.inputs, record.outputs), due, strict=True):
        if [(tensor.name, len(tensor.shape)) for tensor in tensors] != list(ranks.items()):
            wanted = ", ".join(f"{tensor} with {rank} dimensions" for tensor, rank in ranks.items())
            return f"has the {what} {_listing(tensors)} where {wanted} are due"
        for tensor in tensors:
            if tensor.dtype not in (("int64",) if tensor.name in INTEGERS else FLOATS):
                return f"has {_listing([tensor])}, a type that is not supported there"
    if due is TEXT_ENCODER and not isinstance(record.inputs[0].shape[1], int):
        return f"takes {_listing(record.inputs[:1])}, whose length is not fixed"
    width = _width(name, record)
    if due is not MASKS_ALONE and (not isinstance(width, int) or width < 1):
        return f"gives {_listing(record.outputs[-1:])}, whose width is not fixed"
    side = manifest.region.crop_size
    if name == "image_encoder" and record.inputs[0].shape[1:] != [3, side, side]:
        return f"takes {_listing(record.inputs)}, but the manifest's region.crop_size is {side}"
    if name == "image_encoder" and grid and record.inputs[1].shape[1:] != [grid, grid]:
        return f"takes {_listing(record.inputs)}, but the manifest's region.patch_grid is {grid}"
    if name == "pixel_encoder" and record.inputs[0].shape[1] != 3:
        return f"takes {_listing(record.inputs)}, but an image has 3 channels"
    if name == "proposal":
        masks, queries = record.outputs[0].shape[1], record.outputs[-1].shape[1]
        if record.inputs[0].shape[1] != 3 or masks != queries or not isinstance(masks, int) or masks < 1:
            return f"has {_listing([*record.inputs, *record.outputs])}, which do not belong together"
    return None


def _width(name: str, record: GraphRecord) -> int | str:
    """The number of values of a graph's embeddings, which are last, but for those of a map of pixels."""
    return record.outputs[-1].shape[1 if name == "pixel_encoder" else -1]


def _sizes(record: GraphRecord) -> list[list[int | None]]:
    return [_fixed(tensor)[2] for tensor in (*record.inputs, *record.outputs)]


def _fixed(tensor: TensorRecord) -> tuple[str, str, list[int | None]]:
    """What of a tensor must agree; names of dynamic dimensions need not."""
    return tensor.name, tensor.dtype, [size if isinstance(size, int) else None for size in tensor.shape]


def _listing(tensors: Sequence[TensorRecord]) -> str:
    parts = [
        f"{tensor.name[:40]!r} {tensor.dtype} [{', '.join(map(str, tensor.shape))[:80]}]" for tensor in tensors[:4]
    ]
    return ", ".join(parts) or "none"
