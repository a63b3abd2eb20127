"""SHA-256 hashes of large files, kept between runs, so that weights are read once per run instead of twice.

A hash counts for as long as the file's stamp is the one that it had before it was hashed. Who can write to a file can
put its size and time of modification back, but not its time of change, which the kernel sets at every write, rename and
change of rights; a file that takes its place has another inode, or the same one with another time of change. What
is left is kept out by what is remembered at all:

- Only files that nobody but this user and root may write to. Both could as well change the manifest, the record here,
  or this package.
- Only on file systems of the kernel's own that keep that time, also for memory mapped for writing. Network file systems
  believe their server, FUSE a program, and tmpfs does not see writes to mapped memory.
- Only files that had not been touched for a minute when hashing began: clocks of file systems are coarse, and a page of
  mapped memory that has just been written to can be written to again, unseen, until the kernel has stored it (after
  30 s; vm.dirty_expire_centisecs).
- Only large files: those that hold a graph's nodes, and all small ones, are hashed at every opening.

The record is this user's own file, with rights for nobody else, or it is not read. It does not show that a disk returns
other bytes than were written; without a cache folder (VOCABSEG_CACHE_DIR="") all files are hashed at every opening.
"""

import contextlib
import os
import stat
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec

from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.files import atomic_write, cache_folder, decode_json, open_regular

FILE = "hashes.json"
# Bytes of the record, and files in it, of which the oldest go first.
LARGEST_RECORD, MOST = 1 << 20, 256
# Bytes of a file from which on it is remembered; these take 15 ms to hash.
SMALLEST = 16 << 20
SETTLED = 60_000_000_000  # ns
FILE_SYSTEMS = ("ext4", "xfs")


class Stamp(NamedTuple):
    """What tells that a file was replaced or written to: its size in bytes, times in ns, inode and device."""

    size: int
    modified: int
    changed: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        return cls._from(path.stat())

    @classmethod
    def _from(cls, found: os.stat_result) -> "Stamp":
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)


class HashMemory:
    """The hashes of files by their real paths; nothing is read before it is asked about a large file."""

    def __init__(self) -> None:
        self._added: dict[str, tuple[Stamp, str]] = {}

    def knows(self, path: Path, stamp: Stamp, sha256: str) -> bool:
        """Whether the file at `path` had that hash when it had that stamp."""
        return stamp.size >= SMALLEST and self._kept.get(_key(path)) == (stamp, sha256)

    def add(self, path: Path, stamp: Stamp, sha256: str, begun: int) -> None:
        """Remember the hash of a file that had that stamp at `begun`, before it was hashed, in ns since 1970."""
        if stamp.size >= SMALLEST and begun - stamp.changed > SETTLED and _out_of_reach(path, stamp):
            self._added[_key(path)] = stamp, sha256

    def save(self) -> None:
        """Write down what was added; without a cache folder, or where that fails, nothing is."""
        added, self._added = self._added, {}
        if not added or self._file is None:
            return
        kept = {path: found for path, found in self._read().items() if path not in added} | added
        with contextlib.suppress(OSError, OutputError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._file, mode=stat.S_IRUSR | stat.S_IWUSR) as file:
                file.write(msgspec.json.encode(dict(list(kept.items())[-MOST:])))

    @cached_property
    def _file(self) -> Path | None:
        folder = cache_folder() if os.name == "posix" else None
        return None if folder is None else folder / FILE

    @cached_property
    def _kept(self) -> dict[str, tuple[Stamp, str]]:
        return self._read()

    def _read(self) -> dict[str, tuple[Stamp, str]]:
        if self._file is None:
            return {}
        try:
            with open_regular(self._file) as file:
                found = os.fstat(file.fileno())
                if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                    return {}
                return decode_json(file.read(LARGEST_RECORD), dict[str, tuple[Stamp, str]])
        except (OSError, ValueError):  # none yet, or a damaged one, which is replaced
            return {}


def _key(path: Path) -> str:
    return os.fsencode(os.path.realpath(path)).decode("utf-8", "backslashreplace")


def _out_of_reach(path: Path, stamp: Stamp) -> bool:
    """Whether the file still has that stamp, and nobody but this user and root can write to it unseen."""
    if os.name != "posix":
        return False
    try:
        found = path.stat()
        owned = found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return owned and Stamp._from(found) == stamp and _file_system(found.st_dev) in FILE_SYSTEMS
    except OSError:
        return False


def _file_system(device: int) -> str | None:
    """The type of the file system on a device, such as "ext4"; None where the system does not tell (only Linux does).

    A line of the list is "36 35 98:0 /root /mounted/at options - ext4 /dev/sda1 options" (man 5 proc, mountinfo).
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            if line.split()[2] == number:
                return line.rpartition(" - ")[2].split()[0]
    return None
