"""Atomic writes: files and folders appear complete or not at all. Files of strangers, read within limits. Caches."""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from vocabseg.runtime.errors import OutputError

CACHE_VARIABLE = "VOCABSEG_CACHE_DIR"

Kind = TypeVar("Kind")


def cache_folder() -> Path | None:
    """Where caches are kept: VOCABSEG_CACHE_DIR, else the user's cache folder.

    None if the variable is empty, and, with a warning, for a user without a home.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen is not None:
        return Path(chosen) if chosen else None
    try:
        return user_cache()
    except OutputError as error:
        warnings.warn(f"nothing is cached: {error}", RuntimeWarning, stacklevel=2)
        return None


def user_cache() -> Path:
    """The user's cache folder for vocabseg, which need not exist; raises OutputError for a user without a home."""
    import platformdirs

    try:
        folder = Path(platformdirs.user_cache_dir("vocabseg"))
    except (RuntimeError, OSError, KeyError):  # HOME is not set, and the user id is in no list of users
        folder = Path("~")
    if not folder.is_absolute():  # "~", unresolved
        raise OutputError("this user has no home folder to keep a cache in: set HOME, or VOCABSEG_CACHE_DIR")
    return folder


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file, at most `limit` of them.

    Raises ValueError, with the reason alone, for a file that cannot be read, is longer, or is a folder, pipe or device.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise ValueError(f"it has {size} bytes, more than {limit}")
            return file.read(limit)
    except OSError as error:
        raise ValueError(_reason(error)) from error


def decode_json(data: bytes, kind: type[Kind]) -> Kind:
    """`data` as JSON of a type; raises ValueError, with the reason in one line, for anything else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def strict_json(content: Any, **layout: Any) -> bytes:
    """JSON in UTF-8, laid out as `json.dumps` does it; numbers that JSON lacks, NaN and infinities, become null."""
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, **layout)
    except ValueError:
        content = json.loads(json.dumps(content), parse_constant=lambda name: None)
        text = json.dumps(content, ensure_ascii=False, **layout)
    return text.encode("utf-8", "backslashreplace")


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return `path` with links resolved if a file can be written there, so that long jobs fail before they start.

    Raises OutputError if the folder is missing or not writable, or the name belongs to anything but a regular file.
    """
    failed = f"cannot write {os.fspath(path)!r}"
    try:
        target = Path(os.path.realpath(path))
        if not target.parent.exists():
            raise OutputError(f"{failed}: the folder {str(target.parent)!r} does not exist; create it first")
        if not target.parent.is_dir():
            raise OutputError(f"{failed}: {str(target.parent)!r} is not a folder; choose another place")
        # replacing a device such as /dev/null with a file would break the machine
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            raise OutputError(f"{failed}: that is a folder or a device; give a file name")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{failed}: no permission to write in {str(target.parent)!r}; choose another folder")
    except (OSError, ValueError) as error:
        raise OutputError(f"{failed}: {_reason(error)}; choose another name") from error
    return target


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; raises OSError, also for pipes and devices, at which reading may never end."""
    # Opening a pipe waits for its writer, but not with the first flag, which regular files ignore.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
    raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))


def check_folder(path: str | os.PathLike[str]) -> Path:
    """Return `path` with links resolved if a folder is there, or can be made with those above it, and be written in.

    Raises OutputError where that cannot be.
    """
    failed = f"cannot {'write in' if os.path.isdir(path) else 'make the folder'} {os.fspath(path)!r}"
    try:
        target = Path(os.path.realpath(path))
        existing = next(place for place in (target, *target.parents) if place.exists())
        if not existing.is_dir():
            raise OutputError(f"{failed}: {str(existing)!r} is not a folder; choose another place")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"{failed}: no permission to write in {str(existing)!r}; choose another folder")
    except (OSError, ValueError) as error:
        raise OutputError(f"{failed}: {_reason(error)}; choose another name") from error
    return target


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, unless it is there; raises OutputError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {str(folder)!r}: {_reason(error)}; choose another place") from None


def check_apart(outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise OutputError if an output is one of the input files, however it is named, or a folder that holds one."""
    real = {os.path.realpath(path): os.fspath(path) for path in inputs}
    for given in outputs:
        output = os.fspath(given)
        place = os.path.realpath(output)
        hit = real.get(place)
        if os.path.isdir(place):
            folder = os.path.join(place, "")
            hit = next((name for path, name in real.items() if path.startswith(folder)), None)
        if hit is not None:
            raise OutputError(f"{output!r} would replace the input {hit!r}: choose another --output")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` only if the block succeeds; until then an existing file is untouched.

    The bytes go to a temporary file in the same folder, which is flushed to disk and renamed, or removed if the block
    raises. `mode` are its rights, less the user's umask. Raises OutputError for any file system error.
    """
    target = check_writable(path)
    temporary = target.parent / f".vocabseg-{secrets.token_hex(8)}.part"
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"cannot write {os.fspath(path)!r}: {_reason(error)}; nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(target: Path, what: str, check: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Yield a temporary folder next to `target`, renamed to `target` if the block succeeds and removed otherwise.

    An existing folder of that name is replaced, unless `check`, called just before, raises. `what` names the folder in
    errors. Raises OutputError for any file system error.
    """
    mark = secrets.token_hex(8)
    temporary, old = (target.parent / f".vocabseg-{mark}.{kind}" for kind in ("part", "old"))
    try:
        _check_folder(target, what)
        temporary.mkdir()
        yield temporary
        _check_folder(target, what)
        check()
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {what} {target}: {_reason(error)}; nothing was changed") from error
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _check_folder(target: Path, what: str) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write {what} {target}: a file has that name; nothing was changed")


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.lower().split())
