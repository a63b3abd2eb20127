"""One shard of the outputs: written in a folder of its own, which takes its place among the others by one rename.

    shards/0000017/labels/*.png      label maps, named like the images
                   images.parquet    a row per image: id, source, size, label map
                   masks.parquet     a row per image and class present: area, box, score, COCO run lengths
                   errors.parquet    a row per broken image, where there is any
                   manifest.json     counts and class frequencies

What stands in a shard depends on the plan, the job and the images alone, never on who wrote it or when, so if two
workers write the same one it does not matter whose rename comes first; the other's work is dropped.
"""

import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vocabseg.batch.inputs import Item
from vocabseg.batch.job import SHARDS, WORK
from vocabseg.runtime.errors import OutputError

if TYPE_CHECKING:
    from vocabseg.runtime.result.result import Result

MANIFEST = "manifest.json"
IMAGES, MASKS, ERRORS, LABELS = "images.parquet", "masks.parquet", "errors.parquet", "labels"
NAME_LENGTH = 100


class Counts(msgspec.Struct, frozen=True):
    """manifest.json. By class index: the pixels that carry the class, and the images in which it occurs."""

    shard: int
    images: int
    broken: int
    pixels: dict[int, int]
    occurrences: dict[int, int]


class ShardWriter:
    """Collects the outputs of one shard in `output / "work"`; `commit` moves them to `output / "shards"`."""

    def __init__(self, output: Path, number: int, write: tuple[str, ...]):
        self.output = output
        self.number = number
        self.attempt = f"{number:07d}-{secrets.token_hex(4)}"
        self.folder = output / WORK / self.attempt
        self._write = write
        self._images: list[dict[str, Any]] = []
        self._masks: list[dict[str, Any]] = []
        self._errors: dict[str, dict[str, Any]] = {}
        self._pixels: Counter[int] = Counter()
        self._occurrences: Counter[int] = Counter()
        self._names: set[str] = set()
        self.folder.mkdir(parents=True)

    def add(self, item: Item, result: "Result") -> None:
        """Write what one image gave; raises OutputError."""
        height, width = result.labels.shape
        row = {"id": item.id, "source": _source(item), "height": height, "width": width, "labels": None}
        masks = []
        if "rle" in self._write:
            for segment in result.to_json()["segments"]:
                described = {
                    "class_index": segment["category_id"],
                    "class": segment["name"],
                    "area": segment["area"],
                    "bbox": segment["bbox"],
                    "score": segment["score"],
                    "counts": segment["segmentation"]["counts"],
                }
                masks.append({"id": item.id, "height": height, "width": width, **described})
        if "labels" in self._write:
            name = self._name(item)
            (self.folder / LABELS).mkdir(exist_ok=True)
            result.save_labels(self.folder / LABELS / name)
            row["labels"] = f"{shard_folder(self.number)}/{LABELS}/{name}"
        counts = np.bincount(result.labels.ravel() + 1, minlength=len(result.classes) + 1)[1:]
        for index in np.flatnonzero(counts).tolist():
            self._pixels[index] += int(counts[index])
            self._occurrences[index] += 1
        self._images.append(row)
        self._masks += masks

    @property
    def done(self) -> int:
        """Images taken in so far, broken ones included."""
        return len(self._images) + len(self._errors)

    def add_error(self, item: Item, kind: str, reason: str) -> None:
        """Note an image that gives no result: kind "image" (it cannot be read), "fault" or "crash", and the reason."""
        self._errors[item.id] = {"id": item.id, "source": _source(item), "kind": kind, "reason": reason}

    def commit(self) -> Counts:
        """Make the shard part of the output; that of another writer stays if there is one. Returns its counts."""
        counts = Counts(
            self.number,
            len(self._images),
            len(self._errors),
            dict(sorted(self._pixels.items())),
            dict(sorted(self._occurrences.items())),
        )
        try:
            write_table(self.folder / IMAGES, self._images, images_schema())
            if "rle" in self._write:
                write_table(self.folder / MASKS, self._masks, masks_schema())
            if self._errors:
                rows = [row for _, row in sorted(self._errors.items())]
                write_table(self.folder / ERRORS, rows, errors_schema())
            (self.folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(counts), indent=1) + b"\n")
            _flush(self.folder)
            target = self.output / shard_folder(self.number)
            target.parent.mkdir(exist_ok=True)
            try:
                os.rename(self.folder, target)
            except OSError:
                if not (target / MANIFEST).is_file():
                    raise
                self.discard()
            _flush_folder(target.parent)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"cannot write in {str(self.output)!r}: {reason}; what is committed stays") from error
        return counts

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _name(self, item: Item) -> str:
        """A file name made of the id's last part, with characters that every file system takes, once in the shard."""
        last = item.id.rpartition("/")[2]
        stem = last.rpartition(".")[0] or last
        safe = re.sub(r"[^\w.+=@-]+", "_", stem).strip(".") or "image"
        while len(safe.encode()) > NAME_LENGTH:
            safe = safe[:-1]
        if safe.casefold() in self._names:
            safe = f"{safe}-{item.digest:016x}"
        self._names.add(safe.casefold())
        return f"{safe}.png"


def shard_folder(number: int) -> str:
    """A shard's place relative to the output folder."""
    return f"{SHARDS}/{number:07d}"


def is_committed(output: Path, number: int) -> bool:
    return (output / shard_folder(number) / MANIFEST).is_file()


def read_counts(output: Path, number: int) -> Counts:
    """The counts of a committed shard; raises OutputError where it was damaged."""
    path = output / shard_folder(number) / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Counts, strict=False)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be read ({error}): remove its folder and run again") from None


def committed(output: Path) -> Iterator[int]:
    """The numbers of the committed shards, in order."""
    folder = output / SHARDS
    if folder.is_dir():
        yield from sorted(int(entry.name) for entry in os.scandir(folder) if entry.name.isdecimal())


def images_schema() -> Any:
    import pyarrow as pa

    kinds = {"id": pa.string(), "source": pa.string(), "height": pa.int32(), "width": pa.int32(), "labels": pa.string()}
    return pa.schema(list(kinds.items()))


def masks_schema() -> Any:
    import pyarrow as pa

    kinds = {
        "id": pa.string(),
        "class_index": pa.int32(),
        "class": pa.string(),
        "area": pa.int64(),
        "bbox": pa.list_(pa.int32()),
        "score": pa.float32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "counts": pa.string(),
    }
    return pa.schema(list(kinds.items()))


def errors_schema() -> Any:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("id", "source", "kind", "reason")])


def write_table(path: Path, rows: list[dict[str, Any]], schema: Any) -> None:
    """A Parquet file of rows."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def _source(item: Item) -> str:
    return os.fsencode(item.path).decode("utf-8", "backslashreplace")


def _flush(folder: Path) -> None:
    """Everything below `folder` on the disk: what the rename makes visible must not be lost with the power."""
    folders = [Path(place) for place, _, _ in os.walk(folder)]
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    with ThreadPoolExecutor(8) as pool:  # a journal takes many at once
        list(pool.map(_flush_file, files))
    for place in reversed(folders):
        _flush_folder(place)


def _flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
