"""The bundle: the contract between export and runtime. A folder with a manifest, ONNX graphs, tokenizer and tensors."""

from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np

from vocabseg.runtime.bundle.manifest import (
    MANIFEST,
    FileRecord,
    GraphRecord,
    Manifest,
    read_manifest,
    sha256_file,
)
from vocabseg.runtime.errors import BundleError

TOKENIZER = "tokenizer.json"
TENSORS = "tensors.safetensors"


def demo_folder() -> Path:
    """The folder of the built-in demo model, which is part of the package; see its README.md."""
    package = find_spec("vocabseg")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "demo"


def is_demo(folder: str | Path) -> bool:
    """Whether a folder is that of the built-in demo model, through links and otherwise."""
    return Path(folder).resolve() == demo_folder().resolve()


def check_changeable(folder: str | Path) -> None:
    """Raise BundleError for the built-in demo model: nothing is written into the installed package."""
    if is_demo(folder):
        raise BundleError(
            f"{folder} is the built-in demo model, which belongs to the installed package and is never changed: "
            "`vocabseg calibrate --output report` works on a copy of it, vocabseg-demo; or copy the folder yourself"
        )


class Bundle:
    """An opened, verified bundle: `folder`, `manifest`, and the small tensors by name."""

    def __init__(self, folder: Path, manifest: Manifest, tensors: dict[str, np.ndarray]):
        self.folder = folder
        self.manifest = manifest
        self.tensors = tensors

    def __repr__(self) -> str:
        precisions = ", ".join(["float32", *self.manifest.variants])
        return f"Bundle({self.manifest.name!r} in {str(self.folder)!r}, {precisions})"

    def path(self, name: str) -> Path:
        """Path of a file in the bundle."""
        return self.folder / name

    def graph_path(self, graph: str, precision: str = "float32") -> Path:
        """Path of an ONNX graph by its name, such as "proposal"; raises BundleError if the bundle has none."""
        return self.folder / self.graph(graph, precision).file

    def graph(self, graph: str, precision: str = "float32") -> GraphRecord:
        """The record of a graph by its name; raises BundleError if the bundle has none, or none in `precision`."""
        graphs = self.manifest.graphs_in(precision)
        if graph in graphs:
            return graphs[graph]
        if graph in self.manifest.graphs:
            if is_demo(self.folder):
                raise BundleError(
                    f"the demo model has no {graph} in {precision}: `vocabseg calibrate --output report` makes a copy "
                    "of it with graphs in lower precision, vocabseg-demo (or copy its folder for `vocabseg build`); "
                    "then give --bundle vocabseg-demo"
                )
            raise BundleError(
                f"bundle {self.folder} has no {graph} in {precision}: make it with "
                f"`vocabseg {_COMMANDS.get(precision, _CALIBRATE).format(folder=self.folder, precision=precision)}`"
            )
        raise BundleError(
            f"bundle {self.folder} has no graph {graph!r}, only {', '.join(self.manifest.graphs)}: export it again"
        )


# The command that makes the graphs of a precision; all others come from calibration.
_CALIBRATE = "calibrate {folder} --precision {precision}"
_COMMANDS = dict.fromkeys(("float16", "float16-rounded", "float16-onnxruntime"), "build {folder} --precision fp16")


def open_bundle(folder: str | Path | None, verify: bool = True) -> Bundle:
    """Open a bundle and check its format, its paths and (with `verify`) every file's SHA-256.

    None opens the built-in demo model.
    Raises BundleError, in one line, for anything missing, damaged, newer than this version or outside the folder.
    """
    folder = demo_folder() if folder is None else Path(folder)
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}: no such folder (make one with `vocabseg export`)")
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"no bundle at {folder}: it contains no {MANIFEST} (make one with `vocabseg export`)")
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
            f"{path} has {path.stat().st_size} bytes, but the manifest says {record.bytes}: copy the bundle again"
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
