"""The manifest of a bundle: everything about it except its tensors."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from vocabseg.runtime.bundle.sections import EnsembleSection, InputSection, RegionSpec
from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.files import atomic_write, decode_json, read_regular

FORMAT = 1
MANIFEST = "manifest.json"
# Bytes that a manifest may have; that of the largest bundle, with all its variants, has some 200,000.
LARGEST_MANIFEST = 64 << 20

# The proposal network's output that not every one has.
QUERIES = "query_embeddings"

# The name of a graph, a precision or a plan: files and folders are named after it.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]+\Z", max_length=64)]
# Shown to users and in their terminals: no control characters, and none that change the direction of writing.
Shown = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*\Z")]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Bytes = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the bundle: its path relative to the bundle's folder, its size in bytes and its SHA-256."""

    file: Shown
    bytes: Bytes
    sha256: str


class TensorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of a graph; a named dimension is dynamic."""

    name: Shown
    dtype: Shown
    shape: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)] | Shown]


class GraphRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One ONNX graph. `external` lists its weight files; `provenance` says how it was made, and from what."""

    file: Shown
    bytes: Bytes
    sha256: str
    external: list[FileRecord] = []
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    opset: int
    dtype: str = "float32"
    provenance: dict[str, Any] = {}

    @property
    def total_bytes(self) -> int:
        """Size of the graph with its weights."""
        return self.bytes + sum(record.bytes for record in self.external)

    def digest(self) -> str:
        """SHA-256 over the graph and its weights: changes when any of its files does."""
        hashes = [self.sha256, *(record.sha256 for record in self.external)]
        if len(self.external) > 1:  # which of them is which matters too
            hashes += [record.file for record in self.external]
        joined = "".join(hashes)
        return hashlib.sha256(joined.encode()).hexdigest()


class TokenizerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tokenizer in the Hugging Face format, one of the manifest's files.

    `kind` "clip" is CLIP's byte-pair encoding. "huggingface" is any that the package `tokenizers` reads; the rest says
    what its file does not: how a text is cleaned first, the id that fills the sequence up, ids that are replaced by 0,
    and that the feature is read at the first `end_id`, or without one at the last place.
    """

    file: Shown
    kind: Literal["clip", "huggingface"] = "clip"
    clean: Literal["whitespace", "lower", "canonicalize"] = "whitespace"
    pad_id: TokenId = 0
    end_id: TokenId | None = None
    zeroed_ids: tuple[TokenId, ...] = ()


class PromptSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a class name becomes token ids, and which graph embeds them.

    `kind` is "single", "vild", "imagenet", "custom" (all of which use `templates`) or "learned", which uses
    `prefix_ids` and `suffix_ids`: rows of the text encoder's embedding table after the tokenizer's own vocabulary.
    Without a `tokenizer` it is CLIP's, the bundle's tokenizer.json.
    """

    graph: Name
    kind: Literal["single", "vild", "imagenet", "custom", "learned"]
    templates: list[str] = []
    prefix_ids: list[TokenId] = []
    suffix_ids: list[TokenId] = []
    tokenizer: TokenizerSpec | None = None


class Prompts(msgspec.Struct, frozen=True, kw_only=True):
    """The prompts of the two sides; without a separate region adapter they are equal."""

    query: PromptSpec
    region: PromptSpec


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a bundle except its tensors. `files` holds the records of tokenizer and tensors.

    `graphs` are the float32 ones; `variants` holds the same graphs in other precisions, by precision and graph.
    `vocabulary` lists the bundle's own class names, `seen` says which of them were seen in training. `weights_license`
    is the licence of the published weights where it limits their use, such as "CC BY-NC 4.0". `masks` are "given" with
    every image where there is no graph "proposal" to find them.
    """

    format: int
    name: Shown
    graphs: dict[Name, GraphRecord]
    files: dict[str, FileRecord]
    input: InputSection
    region: RegionSpec
    ensemble: EnsembleSection
    prompts: Prompts
    vocabulary: list[str] | None = None
    seen: list[bool] | None = None
    weights_license: Shown | None = None
    masks: Literal["given"] | msgspec.UnsetType = msgspec.UNSET
    provenance: dict[str, Any] = {}
    parity: dict[str, Any] = {}
    variants: dict[Name, dict[Name, GraphRecord]] = {}

    @property
    def graph_bytes(self) -> int:
        """Size of all graphs with their weights, in float32."""
        return sum(record.total_bytes for record in self.graphs.values())

    @property
    def has_queries(self) -> bool:
        """Whether proposals have query embeddings; without them the image encoder alone classifies regions."""
        found = self.graphs.get("proposal")
        return found is not None and any(output.name == QUERIES for output in found.outputs)

    @property
    def encodes(self) -> bool:
        """Whether the image encoder is needed to classify the bundle's proposals."""
        return self.ensemble.enabled or not self.has_queries

    @property
    def per_pixel(self) -> bool:
        """Whether this is the one-stage baseline, whose graph "pixel_encoder" embeds every pixel: it has no regions."""
        return "pixel_encoder" in self.graphs and "proposal" not in self.graphs

    @property
    def packages(self) -> tuple[str, ...]:
        """The extras of vocabseg, called like the packages, that its tokenizers need besides an engine's."""
        prompts = self.prompts.query, self.prompts.region
        others = [prompt for prompt in prompts if prompt.tokenizer and prompt.tokenizer.kind == "huggingface"]
        return ("tokenizers",) if others else ()

    def settings(self) -> dict[str, Any]:
        """The sections that decide what the graphs' outputs become, as plain types: for reports."""
        sections = {"input": self.input, "region": self.region, "ensemble": self.ensemble, "prompts": self.prompts}
        return {name: msgspec.to_builtins(section) for name, section in sections.items()}

    def graphs_in(self, precision: str) -> dict[str, GraphRecord]:
        """The graphs of one precision; empty if the bundle has none."""
        return self.graphs if precision == "float32" else self.variants.get(precision, {})


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(folder: Path, name: str) -> FileRecord:
    """The record of `folder / name` as it is on disk."""
    path = folder / name
    return FileRecord(file=name, bytes=path.stat().st_size, sha256=sha256_file(path))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json` into `folder` atomically, indented so that two manifests can be compared line by line.

    Raises OutputError if that fails, and BundleError for a manifest that `read_manifest` would refuse.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    try:
        decode_json(data, Manifest)
    except ValueError as error:
        raise BundleError(f"cannot write the manifest of {folder}: {error}; nothing was changed") from None
    with atomic_write(folder / MANIFEST) as file:
        file.write(data + b"\n")


def output_shapes(record: GraphRecord, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Shapes of all outputs of a graph by name for those of its inputs; raises BundleError as `resolve_shape` does."""
    sizes: dict[str, int] = {}
    for tensor in record.inputs:
        for dimension, size in zip(tensor.shape, shapes[tensor.name], strict=True):
            if isinstance(dimension, str):
                sizes[dimension] = size
    return {tensor.name: resolve_shape(tensor, sizes) for tensor in record.outputs}


def resolve_shape(record: TensorRecord, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input or output for given sizes of its dynamic dimensions, such as {"batch": 1, "height": 640}.

    A dimension is a number, a name, a name over a number ("height/4"), or that rounded up ("ceil(rows/4)"). Raises
    BundleError for one that `sizes` does not determine, and without "ceil" for a size not divisible by the number.
    """
    return tuple(_resolve(record, dimension, sizes) for dimension in record.shape)


def _resolve(record: TensorRecord, dimension: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(dimension, int):
        return dimension
    upwards = dimension.startswith("ceil(") and dimension.endswith(")")
    name, _, divisor = (dimension[5:-1] if upwards else dimension).partition("/")
    if name not in sizes or (divisor and not re.fullmatch("[0-9]{1,9}", divisor)):
        raise BundleError(f"{record.name} has the dimension {dimension!r}, but only {', '.join(sizes)} are known")
    size, step = sizes[name], int(divisor or 1)
    if step < 1 or (size % step and not upwards):
        raise BundleError(f"{record.name} has the dimension {dimension!r}: {name}={size} is not divisible by {divisor}")
    return -(-size // step)


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`; raises BundleError for an unknown format or an invalid manifest."""

    class Head(msgspec.Struct):
        format: int

    try:
        data = read_regular(path, LARGEST_MANIFEST)
        version = decode_json(data, Head).format
        if version > FORMAT:
            raise BundleError(
                f"bundle {path.parent} has format {version}; this vocabseg reads up to {FORMAT}: upgrade vocabseg"
            )
        if version < 1:
            raise BundleError(f"bundle {path.parent} has format {version}, which never existed: export it again")
        return decode_json(data, Manifest)
    except ValueError as error:
        raise BundleError(f"{path} is not a valid manifest ({error}): export the bundle again") from None
