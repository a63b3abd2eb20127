"""Text embeddings kept on disk between runs, in one SQLite file. Trouble with it is warned of once and never raised."""

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.files import user_cache

ENVIRONMENT = "VOCABSEG_CACHE_DIR"
FILE = "text.sqlite"
# Some 200,000 embeddings of 512 float32 values.
LIMIT_BYTES = 500_000_000
# How much of the limit is kept when the oldest embeddings are deleted.
KEPT = 0.8
# SQLite of before 2020 takes at most 999 values in one statement.
KEYS_PER_QUERY = 500
# Seconds to wait for another process that writes, before doing without the cache.
TIMEOUT = 2.0
# SQLite's result codes for a file that is damaged, or no database at all: https://sqlite.org/rescode.html
DAMAGED = (11, 26)
# SQLite's usual 4096 would hold one embedding of 512 float32 values and leave the rest empty.
PAGE_BYTES = 16384

TABLE = "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, value BLOB NOT NULL)"


def cache_folder() -> Path | None:
    """Where embeddings are kept: VOCABSEG_CACHE_DIR, else the user's cache folder.

    None when that variable is empty, and, with a warning, for a user without a home.
    """
    chosen = os.environ.get(ENVIRONMENT)
    if chosen is not None:
        return Path(chosen) if chosen else None
    try:
        return user_cache()
    except OutputError as error:
        warnings.warn(f"nothing is cached: {error}", RuntimeWarning, stacklevel=2)
        return None


class TextCache:
    """Keys to values, both bytes, in `folder / text.sqlite`; nothing is kept where `folder` is None.

    A connection lasts for one call, so that threads and forked processes share nothing but the file.
    """

    def __init__(self, folder: Path | None, limit_bytes: int = LIMIT_BYTES):
        self.path = None if folder is None else folder / FILE
        self.limit_bytes = limit_bytes
        self._warned = False

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there."""
        found: dict[bytes, bytes] = {}
        if keys and self.path is not None:
            self._use(self.path, lambda connection: found.update(_select(connection, keys)), make=False)
        return found

    def write(self, values: Mapping[bytes, bytes]) -> None:
        """Keep `values`, in one transaction; the oldest are deleted when the file outgrows its limit."""
        if values and self.path is not None:
            self._use(self.path, lambda connection: _insert(connection, values, self.limit_bytes))

    def _use(self, path: Path, work: Callable[[sqlite3.Connection], None], make: bool = True) -> None:
        try:
            if not make and not path.exists():  # raises PermissionError in a folder that one may not enter
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: transactions begin where they are said to.
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
                    f"the cache of text embeddings {path} {what} ({error}): names are encoded anew; set {ENVIRONMENT} "
                    "to another folder, or to nothing to do without",
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
            # Row ids grow with every insertion, so the lowest are the oldest. Pages that become free are used again.
            (count,) = connection.execute("SELECT count(*) FROM embeddings").fetchone()
            surplus = count - int(count * KEPT * limit_bytes / used)
            oldest = "SELECT rowid FROM embeddings ORDER BY rowid LIMIT ?"
            connection.execute(f"DELETE FROM embeddings WHERE rowid IN ({oldest})", (surplus,))


def _set_aside(path: Path) -> None:
    """Rename a damaged file, and remove its journal, which would be played back into the next file of that name."""
    with contextlib.suppress(OSError):
        os.replace(path, path.with_name(path.name + ".damaged"))
        path.with_name(path.name + "-journal").unlink(missing_ok=True)
