"""Text embeddings kept on disk between runs, in one SQLite file. Errors are not raised, only warned about once."""

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vocabseg.runtime.files import CACHE_VARIABLE

FILE = "text.sqlite"
# About 200,000 embeddings of 512 float32 values.
LIMIT_BYTES = 500_000_000
# Share of the limit that is kept when the oldest embeddings are deleted.
KEPT = 0.8
# SQLite versions before 2020 accept at most 999 values per statement.
KEYS_PER_QUERY = 500
# Seconds to wait for another process to finish writing, before going without the cache.
TIMEOUT = 2.0
# SQLite's result codes for a file that is damaged or not a database: https://sqlite.org/rescode.html
DAMAGED = (11, 26)
# SQLite's default of 4096 would hold one embedding of 512 float32 values and waste the rest.
PAGE_BYTES = 16384

TABLE = "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, value BLOB NOT NULL)"


class TextCache:
    """Maps keys to values, both bytes, in `folder / text.sqlite`; stores nothing if `folder` is None.

    Each call opens its own connection, so that threads and forked processes share only the file.
    """

    def __init__(self, folder: Path | None, limit_bytes: int = LIMIT_BYTES):
        self.path = None if folder is None else folder / FILE
        self.limit_bytes = limit_bytes
        self._warned = False

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are stored."""
        found: dict[bytes, bytes] = {}
        if keys and self.path is not None:
            self._use(self.path, lambda connection: found.update(_select(connection, keys)), make=False)
        return found

    def write(self, values: Mapping[bytes, bytes]) -> None:
        """Store `values` in one transaction; the oldest are deleted when the file outgrows its limit."""
        if values and self.path is not None:
            self._use(self.path, lambda connection: _insert(connection, values, self.limit_bytes))

    def _use(self, path: Path, work: Callable[[sqlite3.Connection], None], make: bool = True) -> None:
        try:
            if not make and not path.exists():  # raises PermissionError in a folder that one may not enter
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: transactions begin explicitly.
            with contextlib.closing(sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None)) as connection:
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.execute(TABLE)
                work(connection)
        except (sqlite3.Error, OSError) as error:
            damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED
            if damaged:
                _set_aside(path)
            if not self._warned:
                self._warned = True
                what = "is damaged and was renamed" if damaged else "cannot be used"
                warnings.warn(
                    f"the cache of text embeddings {path} {what} ({error}): names are encoded again; set "
                    f"{CACHE_VARIABLE} to another folder, or to an empty value to disable the cache",
                    RuntimeWarning,
                    stacklevel=3,
                )


def _select(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for start in range(0, len(keys), KEYS_PER_QUERY):
        part = keys[start : start + KEYS_PER_QUERY]
        marks = ",".join("?" * len(part))
        rows = connection.execute(f"SELECT key, value FROM embeddings WHERE key IN ({marks})", part)
        found.update((key, value) for key, value in rows if isinstance(value, bytes))
    return found


def _insert(connection: sqlite3.Connection, values: Mapping[bytes, bytes], limit_bytes: int) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", values.items())
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        used = (pages - free) * size
        if used > limit_bytes:
            # Row ids grow with every insertion, so the lowest are the oldest. Freed pages are reused.
            (count,) = connection.execute("SELECT count(*) FROM embeddings").fetchone()
            surplus = count - int(count * KEPT * limit_bytes / used)
            oldest = "SELECT rowid FROM embeddings ORDER BY rowid LIMIT ?"
            connection.execute(f"DELETE FROM embeddings WHERE rowid IN ({oldest})", (surplus,))


def _set_aside(path: Path) -> None:
    """Rename a damaged file and remove its journal, which would be replayed into the next file of that name."""
    with contextlib.suppress(OSError):
        os.replace(path, path.with_name(path.name + ".damaged"))
        path.with_name(path.name + "-journal").unlink(missing_ok=True)
