"""The plan: which images belong to which shard. Written before the work, and only ever added to.

A plan file is a Parquet file with one row group per shard, named by its first shard, and appears by a rename. A later
run reads it and puts new images into new shards behind the others; so an interrupted run goes on with exactly the
shards it would have made undisturbed.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vocabseg.batch.inputs.items import InputError, Item
from vocabseg.batch.job import PLAN
from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.files import atomic_write

SHARDS_PER_FILE = 256
COLUMNS = ("id", "path", "offset", "size")


class PlannedShard(NamedTuple):
    """A shard's number, how many images it has, and its place in the plan's files."""

    number: int
    images: int
    file: str
    group: int


class Planned(NamedTuple):
    """All shards, and how many planned images the inputs no longer name."""

    shards: list[PlannedShard]
    absent: int


def extend_plan(output: Path, items: Iterable[Item], shard_size: int) -> Planned:
    """Plan those of `items` that are not planned yet, in their order, `shard_size` to a shard.

    Keeps 8 bytes of each id and place, some 200 bytes of memory per image. Raises InputError for two images with the
    same id, and for one that was planned in another place.
    """
    folder = output / PLAN
    folder.mkdir(exist_ok=True)
    earlier = list(planned_shards(output))
    places = {item.digest: item.place for shard in earlier for item in read_shard(output, shard)}
    seen: set[int] = set()
    fresh: list[list[Item]] = [[]]
    number = len(earlier)
    for item in items:
        digest = item.digest
        if digest in seen:
            raise InputError(
                f"the id {item.id!r} occurs twice, the second time for {item.path!r}: give each image once, from one "
                "folder above, or from a list with a column of ids"
            )
        seen.add(digest)
        if digest in places:
            if places[digest] != item.place:
                raise InputError(
                    f"{output} has another image {item.id!r} than {item.path!r}: give the same inputs again, or "
                    "another --output"
                )
            continue
        if len(fresh[-1]) >= shard_size:
            if len(fresh) >= SHARDS_PER_FILE:
                _write(folder, number, fresh)
                number += len(fresh)
                fresh = []
            fresh.append([])
        fresh[-1].append(item)
    if fresh[0]:
        _write(folder, number, fresh)
    return Planned(list(planned_shards(output)), len(places.keys() - seen))


def planned_shards(output: Path) -> Iterator[PlannedShard]:
    """The shards planned so far, by number; raises OutputError for a damaged plan."""
    from pyarrow.parquet import read_metadata

    for path in sorted((output / PLAN).glob("*.parquet")):
        try:
            first, metadata = int(path.stem), read_metadata(path)
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except Exception as error:  # of damaged files, pyarrow raises more than its own
            raise _damaged(path, error) from None
        for group, count in enumerate(rows):
            yield PlannedShard(first + group, count, path.name, group)


def read_shard(output: Path, shard: PlannedShard) -> list[Item]:
    """The images of a shard; raises OutputError for a damaged plan."""
    from pyarrow.parquet import ParquetFile

    path = output / PLAN / shard.file
    try:
        with ParquetFile(path) as file:
            table = file.read_row_group(shard.group, columns=list(COLUMNS)).cast(_schema())
        columns = (table[name].to_pylist() for name in COLUMNS)
        return [Item(id_, os.fsdecode(place), *part) for id_, place, *part in zip(*columns, strict=True)]
    except Exception as error:
        raise _damaged(path, error) from None


def _write(folder: Path, first: int, shards: list[list[Item]]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = _schema()
    with atomic_write(folder / f"{first:07d}.parquet") as file, ParquetWriter(file, schema) as writer:
        for items in shards:
            columns: list[Any] = [list(column) for column in zip(*items, strict=True)]
            columns[1] = [os.fsencode(path) for path in columns[1]]
            arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
            writer.write_table(pyarrow.table(arrays, schema=schema), row_group_size=len(items))


def _schema() -> Any:
    import pyarrow

    # Paths as bytes: not every file name is text.
    kinds = (pyarrow.string(), pyarrow.binary(), pyarrow.int64(), pyarrow.int64())
    return pyarrow.schema(list(zip(COLUMNS, kinds, strict=True)))


def _damaged(path: Path, error: Exception) -> OutputError:
    lines = str(error).splitlines() or [type(error).__name__]
    return OutputError(f"the plan {path} cannot be read ({lines[0]}): choose another --output")
