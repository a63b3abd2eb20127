"""Variants: the same graphs in other precisions, added to a bundle in use without ever breaking it."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vocabseg.runtime.bundle.folder import check_changeable
from vocabseg.runtime.bundle.manifest import MANIFEST, GraphRecord, Manifest, read_manifest, write_manifest
from vocabseg.runtime.errors import BundleError, OutputError

FOLDER = "graphs"


class NewVariants:
    """Graphs to be added to a bundle: written into the folders that `place` returns, registered with `add`."""

    def __init__(self, staging: Path):
        self._staging = staging
        self.graphs: dict[str, dict[str, GraphRecord]] = {}

    def place(self, precision: str) -> Path:
        """The folder for graph files of one precision, which will be graphs/<precision> in the bundle."""
        folder = self._staging / precision
        folder.mkdir(exist_ok=True)
        return folder

    def add(self, precision: str, graph: str, record: GraphRecord, place: str | None = None) -> None:
        """Register a graph of `precision` whose files are in `self.place(place or precision)`.

        Graphs may share a weights file. A record whose file is not there refers to files already in the bundle.
        """
        place = place or precision
        if (self._staging / place / record.file).is_file():
            prefix = f"{FOLDER}/{place}/"
            external = [msgspec.structs.replace(one, file=prefix + one.file) for one in record.external]
            record = msgspec.structs.replace(record, file=prefix + record.file, external=external)
        self.graphs.setdefault(precision, {})[graph] = record


@contextlib.contextmanager
def new_variants(bundle: str | Path) -> Iterator[NewVariants]:
    """Write graphs in other precisions; if the block succeeds, they are added to the bundle at `bundle` all at once.

    Existing graphs of these precisions that the block does not write are kept. If the block raises or the process dies,
    the bundle is unchanged, with one exception: a process that dies between replacing older files and registering the
    new ones leaves a valid bundle without either.

    Raises BundleError if there is no bundle, or it is the built-in demo model, and OutputError if it cannot be written.
    """
    bundle = Path(bundle)
    if not (bundle / MANIFEST).is_file():
        raise BundleError(f"no bundle at {bundle}: it contains no {MANIFEST} (make one with `vocabseg export`)")
    check_changeable(bundle)
    staging = bundle / f".vocabseg-{secrets.token_hex(8)}.part"
    try:
        staging.mkdir()
        variants = NewVariants(staging)
        yield variants
        _install(bundle, staging, variants.graphs)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write into the bundle {bundle}: {reason}; nothing was changed") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _install(bundle: Path, staging: Path, added: dict[str, dict[str, GraphRecord]]) -> None:
    files = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
    for file in files:
        with (staging / file).open("rb") as written:
            os.fsync(written.fileno())
    manifest = read_manifest(bundle / MANIFEST)
    overwritten = {f"{FOLDER}/{file.as_posix()}" for file in files}
    kept = {
        precision: {name: record for name, record in graphs.items() if not overwritten & _files(record)}
        for precision, graphs in manifest.variants.items()
    }
    if kept != manifest.variants:
        _write(bundle, manifest, kept)
    for file in files:
        target = bundle / FOLDER / file
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / file, target)
    merged = {precision: kept.get(precision, {}) | added.get(precision, {}) for precision in {**kept, **added}}
    _write(bundle, manifest, merged)


def _files(record: GraphRecord) -> set[str]:
    return {record.file, *(external.file for external in record.external)}


def _write(bundle: Path, manifest: Manifest, variants: dict[str, dict[str, GraphRecord]]) -> None:
    used = {precision: variants[precision] for precision in sorted(variants) if variants[precision]}
    write_manifest(msgspec.structs.replace(manifest, variants=used), bundle)
