"""The bundle: the contract between export and runtime. A folder with a manifest, ONNX graphs, tokenizer and tensors."""

import contextlib
import errno
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from vocabseg.runtime.bundle.contract import check_contract, check_graph
from vocabseg.runtime.bundle.hash_memory import HashMemory, Stamp
from vocabseg.runtime.bundle.manifest import (
    MANIFEST,
    FileRecord,
    GraphRecord,
    Manifest,
    read_manifest,
    sha256_file,
)
from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.files import read_regular
from vocabseg.runtime.threads import thread_count

TOKENIZER = "tokenizer.json"
TENSORS = "tensors.safetensors"
# Bytes that the small tensors may have.
LARGEST_TENSORS = 256 << 20
# How often a graph is loaded again whose files are touched meanwhile, as by a hard link that is made to them.
LOADINGS = 3

Loaded = TypeVar("Loaded")


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

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        tensors: dict[str, np.ndarray],
        stamps: dict[str, Stamp] | None = None,
    ):
        """`stamps` are those of the files that have been checked; others are hashed when they are first used."""
        self.folder = folder
        self.manifest = manifest
        self.tensors = tensors
        self._stamps = {} if stamps is None else stamps

    def with_manifest(self, manifest: Manifest) -> "Bundle":
        """The same files under another manifest."""
        return Bundle(self.folder, manifest, self.tensors, self._stamps)

    def check_unchanged(self, record: FileRecord | GraphRecord) -> None:
        """Raise BundleError if a file of the record is not, or no longer, the one that the manifest describes.

        To be called before a file is read that was checked some time ago, or never; hashes only what was touched since.
        """
        memory, touched = HashMemory(), False
        for file in _files(record):
            path = self.folder / file.file
            try:
                stamp = Stamp.of(path)
                if self._stamps.get(file.file) != stamp:
                    if stamp.size != file.bytes or not _is_intact(path, file, stamp, memory):
                        raise BundleError(f"{path} was changed after the bundle was opened: open it again")
                    self._stamps[file.file], touched = stamp, True
            except OSError as error:
                raise _gone(path, error) from error
        memory.save()
        if touched and isinstance(record, GraphRecord):
            check_graph(self.folder, record)

    def read(self, name: str, read: Callable[[Path], Loaded]) -> Loaded:
        """What `read` makes of the path of a listed file that is no graph, such as the tokenizer's; as `load` does."""
        record = next((record for record in self.manifest.files.values() if record.file == name), None)
        if record is None:
            raise BundleError(f"{self.folder} does not list {name} among its files: export the model again")
        return self.load(record, lambda: read(self.folder / name))

    def load(self, record: FileRecord | GraphRecord, read: Callable[[], Loaded]) -> Loaded:
        """What `read` makes of the record's files, which are the ones that were checked: none is touched meanwhile.

        Raises BundleError as `check_unchanged` does, and for files that keep changing.
        """
        for _ in range(LOADINGS):
            self.check_unchanged(record)
            loaded = read()
            try:
                if all(Stamp.of(self.folder / file.file) == self._stamps[file.file] for file in _files(record)):
                    return loaded
            except OSError as error:
                raise _gone(self.folder / record.file, error) from error
        raise BundleError(f"{self.folder / record.file} keeps changing while it is read: leave it alone, and try again")

    def __repr__(self) -> str:
        precisions = ", ".join(["float32", *self.manifest.variants])
        return f"Bundle({self.manifest.name!r} in {str(self.folder)!r}, {precisions})"

    def path(self, name: str) -> Path:
        """Path of a file in the bundle; raises BundleError if it was changed after the bundle was opened."""
        for record in self.manifest.files.values():
            if record.file == name:
                self.check_unchanged(record)
        return self.folder / name

    def require_proposals(self) -> None:
        """Raise BundleError for a bundle without a proposal network, where masks have to be found."""
        if self.manifest.masks == "given":
            raise BundleError(
                f"bundle {self.folder} has no proposal network, so masks must be given with every image: `vocabseg "
                "segment --masks FILE`, or segmenter.regions(image, masks) in Python; or export one with --proposals"
            )

    def graph_path(self, graph: str, precision: str = "float32") -> Path:
        """Path of an ONNX graph by its name, such as "proposal".

        Raises BundleError if the bundle has none, or its files were changed after the bundle was opened.
        """
        record = self.graph(graph, precision)
        self.check_unchanged(record)
        return self.folder / record.file

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
_COMMANDS["bfloat16"] = "build {folder} --precision bf16"
_COMMANDS |= {f"{kind}-float16": f"build {{folder}} --precision {kind}" for kind in ("int8", "fp8")}


def open_bundle(folder: str | Path | None, verify: bool = True) -> Bundle:
    """Open a bundle and check its format, its paths and (with `verify`) every file's SHA-256 and every graph's outline.

    None opens the built-in demo model. Without `verify`, graphs and tokenizer are checked when they are first used.
    Raises BundleError, in one line, for anything missing, unreadable, damaged, newer than this version or outside the
    folder.
    """
    folder = demo_folder() if folder is None else Path(folder)
    try:
        return _open(folder, verify)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BundleError(
            f"the bundle {folder} cannot be read: {error.filename or folder}: {reason}; check its access rights"
        ) from error


def _open(folder: Path, verify: bool) -> Bundle:
    path = folder / MANIFEST
    for place in (folder, path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
            place.stat()
            if not os.access(place, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
    if not os.path.isdir(folder):
        raise BundleError(f"no bundle at {folder}: no such folder (make one with `vocabseg export`)")
    if not os.path.lexists(path):
        raise BundleError(f"no bundle at {folder}: it contains no {MANIFEST} (make one with `vocabseg export`)")
    manifest = read_manifest(path)
    check_contract(folder, manifest)
    listed, memory = listed_files(manifest), HashMemory()
    with ThreadPoolExecutor(thread_count() if verify else 1) as pool:  # hashing lets other threads run
        checked = pool.map(lambda file: _check_file(folder, file, memory if verify else None), listed)
        stamps = {file.file: stamp for file, stamp in zip(listed, checked, strict=True)}
    memory.save()
    for graphs in (manifest.graphs, *manifest.variants.values()) if verify else ():
        for graph in graphs.values():
            check_graph(folder, graph)
    own = [prompt.tokenizer.file for prompt in (manifest.prompts.query, manifest.prompts.region) if prompt.tokenizer]
    for needed in (TOKENIZER, TENSORS, *own):
        if needed not in {record.file for record in manifest.files.values()}:
            raise BundleError(f"bundle {folder} does not list {needed} in its manifest: export it again")
    bundle = Bundle(folder, manifest, {}, stamps if verify else {})
    bundle.tensors = bundle.read(TENSORS, _read_tensors)
    return bundle


def listed_files(manifest: Manifest) -> list[FileRecord]:
    """All files of a bundle but its manifest and engines, each once: variants may share files."""
    records: list[FileRecord | GraphRecord] = list(manifest.files.values())
    for graphs in (manifest.graphs, *manifest.variants.values()):
        records += graphs.values()
    return list(dict.fromkeys(file for record in records for file in _files(record)))


def _files(record: FileRecord | GraphRecord) -> list[FileRecord]:
    """The record's own file, and those of its weights."""
    own = FileRecord(file=record.file, bytes=record.bytes, sha256=record.sha256)
    return [own, *record.external] if isinstance(record, GraphRecord) else [own]


def _is_intact(path: Path, record: FileRecord, stamp: Stamp, memory: HashMemory) -> bool:
    """Whether the file with that stamp is the record's: hashed now, or since when nothing has touched it."""
    if memory.knows(path, stamp, record.sha256):
        return True
    begun = time.time_ns()
    if sha256_file(path) != record.sha256:
        return False
    memory.add(path, stamp, record.sha256, begun)
    return True


def _gone(path: Path, error: OSError) -> BundleError:
    reason = (error.strerror or str(error)).lower()
    return BundleError(f"{path} can no longer be read ({reason}): copy the bundle again")


def _check_file(folder: Path, record: FileRecord, memory: HashMemory | None) -> Stamp:
    """The stamp of a file that is there, inside the folder, of the right size and, with `memory`, of the right hash."""
    name = PurePosixPath(record.file)
    path = folder / record.file
    try:
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
            raise BundleError(
                f"bundle {folder} lacks the file {record.file!r}: copy the whole folder, or export it again"
            )
        stamp = Stamp.of(path)
        if stamp.size != record.bytes:
            raise BundleError(
                f"{path} has {stamp.size} bytes, but the manifest says {record.bytes}: copy the bundle again"
            )
        if memory is not None and not _is_intact(path, record, stamp, memory):
            raise BundleError(
                f"{path} does not match its SHA-256 in the manifest: it was changed or damaged; copy it again"
            )
    except PermissionError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # long names, NUL, loops of links
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise BundleError(
            f"bundle {folder} names the file {record.file[:80]!r}, which cannot be read ({reason}): export it again"
        ) from error
    return stamp


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    try:
        return load(read_regular(path, LARGEST_TENSORS))
    except Exception as error:  # SafetensorError, and whatever NumPy has against a type that it lacks
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{path} cannot be read ({reason}): export the bundle again") from None
