"""One shard of the outputs: written in a folder of its own, which joins the others by one rename.

    shards/0000017/labels/*.png      label maps, named like the images
                   images.parquet    a row per image: id, source, size, label map
                   masks.parquet     a row per image and class present: area, box, score, COCO run lengths
                   errors.parquet    a row per broken image, if there are any
                   manifest.json     counts and class frequencies

The content of a shard depends on the plan, the job and the images alone, never on who wrote it or when; so if two
workers write the same shard it does not matter whose rename comes first, and the other's work is dropped.
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

from vocabseg.batch.inputs.items import Item, as_text
from vocabseg.batch.job import SHARDS, WORK
from vocabseg.runtime.errors import OutputError

if TYPE_CHECKING:
    from vocabseg.runtime.result.result import Result

MANIFEST = "manifest.json"
IMAGES, MASKS, ERRORS, LABELS = "images.parquet", "masks.parquet", "errors.parquet", "labels"
NAME_LENGTH = 100


class ShardCounts(msgspec.Struct, frozen=True):
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
        """Write the result of one image; raises OutputError."""
        height, width = result.labels.shape
        row = {"id": item.id, "source": as_text(item.path), "height": height, "width": width, "labels": None}
        masks = []
        if "rle" in self._write:
            for segment in result.to_json()["segments"]:
                described = {name: segment[name] for name in ("area", "bbox", "score")}
                described |= {"class_index": result.classes.index(segment["name"]), "class": segment["name"]}
                described["category_id"] = segment["category_id"]
                counts = segment["segmentation"]["counts"]
                masks.append({"id": item.id, "height": height, "width": width, "counts": counts, **described})
        if "labels" in self._write:
            name = self._name(item)
            (self.folder / LABELS).mkdir(exist_ok=True)
            result.save_labels(self.folder / LABELS / name)
            row["labels"] = f"{shard_folder(self.number)}/{LABELS}/{name}"
        pixels = np.bincount(result.labels.ravel() + 1, minlength=len(result.classes) + 1)[1:]
        for index in np.flatnonzero(pixels).tolist():
            self._pixels[index] += int(pixels[index])
            self._occurrences[index] += 1
        self._images.append(row)
        self._masks += masks

    @property
    def done(self) -> int:
        """Images added so far, broken ones included."""
        return len(self._images) + len(self._errors)

    def add_error(self, item: Item, kind: str, reason: str) -> None:
        """Record an image without a result: kind "image" (it cannot be read), "fault" or "crash", and the reason."""
        self._errors[item.id] = {"id": item.id, "source": as_text(item.path), "kind": kind, "reason": reason}

    def commit(self) -> ShardCounts:
        """Make the shard part of the output, unless another writer did; returns its counts."""
        counts = ShardCounts(
            self.number,
            len(self._images),
            len(self._errors),
            dict(sorted(self._pixels.items())),
            dict(sorted(self._occurrences.items())),
        )
        try:
            _write_table(self.folder / IMAGES, self._images)
            if "rle" in self._write:
                _write_table(self.folder / MASKS, self._masks)
            if self._errors:
                _write_table(self.folder / ERRORS, [row for _, row in sorted(self._errors.items())])
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
        """A file name from the id's last part, with characters that every file system takes, unique in the shard."""
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


def read_counts(output: Path, number: int) -> ShardCounts:
    """The counts of a committed shard; raises OutputError for a damaged one."""
    path = output / shard_folder(number) / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=ShardCounts, strict=False)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be read ({error}): remove its folder and run again") from None


def committed(output: Path) -> Iterator[int]:
    """The numbers of the committed shards, in order."""
    folder = output / SHARDS
    if folder.is_dir():
        yield from sorted(int(entry.name) for entry in os.scandir(folder) if entry.name.isdecimal())


def schema(table: str) -> Any:
    """The Parquet schema of a shard's table, such as IMAGES."""
    import pyarrow as pa

    text, number, strings = pa.string(), pa.int32(), ("id", "source", "kind", "reason")
    columns = {
        IMAGES: {"id": text, "source": text, "height": number, "width": number, "labels": text},
        MASKS: {
            "id": text, "class_index": number, "class": text, "area": pa.int64(), "bbox": pa.list_(number),
            "score": pa.float32(), "height": number, "width": number, "counts": text,
            "category_id": number,
        },
        ERRORS: dict.fromkeys(strings, text),
    }  # fmt: skip
    return pa.schema(list(columns[table].items()))


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema(path.name)), path, compression="zstd")


def _flush(folder: Path) -> None:
    """Flush everything below `folder` to the disk: what the rename makes visible must survive a power cut."""
    folders = [Path(place) for place, _, _ in os.walk(folder)]
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    with ThreadPoolExecutor(8) as pool:  # the file system's journal takes many at once
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
