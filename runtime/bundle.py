"""The bundle: the contract between export and runtime. A folder with a manifest, ONNX graphs, tokenizer and tensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
import numpy as np

from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.files import atomic_write

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
TENSORS = "tensors.safetensors"


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the bundle: its path relative to the bundle's folder, its size in bytes and its SHA-256."""

    file: str
    bytes: int
    sha256: str


class TensorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of a graph; a named dimension is dynamic."""

    name: str
    dtype: str
    shape: list[int | str]


class GraphRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One ONNX graph. `external` are the files that hold its weights; `provenance` says what made it out of what."""

    file: str
    bytes: int
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
        joined = "".join([self.sha256, *(record.sha256 for record in self.external)])
        return hashlib.sha256(joined.encode()).hexdigest()


class InputSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How an image becomes the proposal network's input; mean and std in 0..255, RGB."""

    min_size: int
    max_size: int
    divisor: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class RegionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a region becomes a crop; mean and std in 0..1, RGB, as the image encoder was trained with."""

    mask_threshold: float
    mask_fill: Literal["mean", "zero"]
    expand_ratio: float
    matting: bool
    crop_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class EnsembleSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How query and region evidence are combined (query^w * region^(1-w) for seen classes, swapped for unseen)."""

    enabled: bool
    weight: float
    temperature: float


class PromptSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a class name becomes token ids, and which graph embeds them.

    `kind` is "single", "vild", "imagenet", "custom" (all of which use `templates`) or "learned", which uses
    `prefix_ids` and `suffix_ids`: rows of the text encoder's embedding table behind the tokenizer's own vocabulary.
    """

    graph: str
    kind: Literal["single", "vild", "imagenet", "custom", "learned"]
    templates: list[str] = []
    prefix_ids: list[int] = []
    suffix_ids: list[int] = []


class Prompts(msgspec.Struct, frozen=True, kw_only=True):
    """The prompts of the two sides; without a separate region adapter they are equal."""

    query: PromptSpec
    region: PromptSpec


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a bundle but its tensors. `files` holds the records of tokenizer and tensors.

    `graphs` are the ones in float32; `variants` holds others that compute the same in another precision, by precision
    and graph. `vocabulary` are the class names the bundle declares as its own, `seen` says which of them were seen in
    training.
    """

    format: int
    name: str
    graphs: dict[str, GraphRecord]
    files: dict[str, FileRecord]
    input: InputSpec
    region: RegionSpec
    ensemble: EnsembleSpec
    prompts: Prompts
    vocabulary: list[str] | None = None
    seen: list[bool] | None = None
    provenance: dict[str, Any] = {}
    parity: dict[str, Any] = {}
    variants: dict[str, dict[str, GraphRecord]] = {}

    @property
    def graph_bytes(self) -> int:
        """Size of all graphs with their weights, in float32."""
        return sum(record.total_bytes for record in self.graphs.values())

    def graphs_in(self, precision: str) -> dict[str, GraphRecord]:
        """The graphs of one precision; empty where the bundle has none of it."""
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
    """Write `manifest.json` into `folder`, whole or not at all, indented, so that two can be compared line by line.

    Raises OutputError where that is not possible.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    with atomic_write(folder / MANIFEST) as file:
        file.write(data + b"\n")


def resolve_shape(record: TensorRecord, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input or output for given sizes of its dynamic dimensions, such as {"batch": 1, "height": 640}.

    A dimension is a number, a name, or a name over a number ("height/4"). Raises BundleError for one that `sizes` does
    not settle, and for a size that the number does not divide.
    """
    return tuple(_resolve(record, dimension, sizes) for dimension in record.shape)


def _resolve(record: TensorRecord, dimension: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(dimension, int):
        return dimension
    name, _, divisor = dimension.partition("/")
    if name not in sizes or (divisor and not divisor.isdigit()):
        raise BundleError(f"{record.name} has the dimension {dimension!r}, and only {', '.join(sizes)} are known")
    size, step = sizes[name], int(divisor or 1)
    if step < 1 or size % step:
        raise BundleError(f"{record.name} has the dimension {dimension!r}: {name}={size} is no multiple of {divisor}")
    return size // step


def demo_folder() -> Path:
    """The folder of the built-in demo model, which is part of the package; its README.md says what it knows."""
    import vocabseg

    return Path(str(vocabseg.__file__)).parent / "demo"


class Bundle:
    """An opened, verified bundle: `folder`, `manifest`, and the small tensors by name."""

    def __init__(self, folder: Path, manifest: Manifest, tensors: dict[str, np.ndarray]):
        self.folder = folder
        self.manifest = manifest
        self.tensors = tensors

    def path(self, name: str) -> Path:
        """Absolute path of a file of the bundle."""
        return self.folder / name

    def graph_path(self, graph: str, precision: str = "float32") -> Path:
        """Path of an ONNX graph by its name, such as "proposal"; raises BundleError where the bundle has none."""
        return self.folder / self.graph(graph, precision).file

    def graph(self, graph: str, precision: str = "float32") -> GraphRecord:
        """The record of a graph by its name; raises BundleError where the bundle has none, or none in `precision`."""
        graphs = self.manifest.graphs_in(precision)
        if graph in graphs:
            return graphs[graph]
        if graph in self.manifest.graphs:
            raise BundleError(
                f"bundle {self.folder} has no {graph} in {precision}: make it with "
                f"`vocabseg {_COMMANDS.get(precision, _CALIBRATE).format(folder=self.folder, precision=precision)}`"
            )
        raise BundleError(
            f"bundle {self.folder} has no graph {graph!r}, only {', '.join(self.manifest.graphs)}: export it again"
        )


# What makes the graphs of a precision; the others come out of a calibration.
_CALIBRATE = "calibrate {folder} --precision {precision}"
_COMMANDS = dict.fromkeys(("float16", "float16-rounded", "float16-onnxruntime"), "build {folder} --precision fp16")


def open_bundle(folder: str | Path | None, verify: bool = True) -> Bundle:
    """Open a bundle and check its format, the files' places and (with `verify`) every file's SHA-256.

    Without a folder it is the built-in demo model.
    Raises BundleError, in one line, for what is missing, damaged, newer than this version or outside the folder.
    """
    folder = demo_folder() if folder is None else Path(folder)
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}: no such folder (make one with `vocabseg export`)")
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"no bundle at {folder}: it holds no {MANIFEST} (make one with `vocabseg export`)")
    manifest = read_manifest(path)
    files: list[FileRecord | GraphRecord] = list(manifest.files.values())
    for graphs in (manifest.graphs, *manifest.variants.values()):
        for graph in graphs.values():
            files += [graph, *graph.external]
    # Variants may share files.
    for record in {(record.file, record.bytes, record.sha256): record for record in files}.values():
        _check_file(folder, record, verify)
    for needed in _needed_graphs(manifest):
        if needed not in manifest.graphs:
            raise BundleError(f"bundle {folder} has no graph {needed!r}, which its manifest needs: export it again")
    for needed in (TOKENIZER, TENSORS):
        if needed not in {record.file for record in manifest.files.values()}:
            raise BundleError(f"bundle {folder} does not list {needed} in its manifest: export it again")
    return Bundle(folder, manifest, _read_tensors(folder / TENSORS))


def _needed_graphs(manifest: Manifest) -> list[str]:
    return ["proposal", "image_encoder", manifest.prompts.query.graph, manifest.prompts.region.graph]


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`; raises BundleError for another format and for what is no manifest."""

    class Head(msgspec.Struct):
        format: int

    data = path.read_bytes()
    try:
        version = msgspec.json.decode(data, type=Head).format
        if version > FORMAT:
            raise BundleError(
                f"bundle {path.parent} has format {version}, this vocabseg reads up to {FORMAT}: upgrade vocabseg"
            )
        if version < 1:
            raise BundleError(f"bundle {path.parent} has format {version}, which never existed: export it again")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is no valid manifest ({error}): export the bundle again") from None


def _check_file(folder: Path, record: FileRecord | GraphRecord, verify: bool) -> None:
    name = PurePosixPath(record.file)
    path = folder / record.file
    if (
        name.is_absolute()
        or ".." in name.parts
        or "\\" in record.file
        or not path.resolve().is_relative_to(folder.resolve())
    ):
        raise BundleError(
            f"bundle {folder} names the file {record.file!r}, which lies outside it: do not use this bundle"
        )
    if not path.is_file():
        raise BundleError(f"bundle {folder} lacks the file {record.file}: copy the whole folder, or export it again")
    if path.stat().st_size != record.bytes:
        raise BundleError(
            f"{path} has {path.stat().st_size} bytes, the manifest says {record.bytes}: copy the bundle again"
        )
    if verify and sha256_file(path) != record.sha256:
        raise BundleError(
            f"{path} does not match its SHA-256 in the manifest: it was changed or damaged; copy it again"
        )


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BundleError(f"{path} cannot be read ({error}): export the bundle again") from None
