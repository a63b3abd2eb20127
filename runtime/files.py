"""Files and folders that appear whole or not at all."""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from vocabseg.runtime.errors import OutputError


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return `path` with links resolved if a file could be written there, so that long work can fail before it starts.

    Raises OutputError when the folder is missing or not writable, or the name is taken by something that is no file.
    """
    failed = f"cannot write {os.fspath(path)!r}"
    try:
        target = Path(os.path.realpath(path))
        if not target.parent.exists():
            raise OutputError(f"{failed}: the folder {str(target.parent)!r} does not exist; create it first")
        if not target.parent.is_dir():
            raise OutputError(f"{failed}: {str(target.parent)!r} is not a folder; choose another place")
        # replacing a device such as /dev/null by a file would be fatal to the machine
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            raise OutputError(f"{failed}: that is a folder or a device; give a file name")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{failed}: no permission to write in {str(target.parent)!r}; choose another folder")
    except (OSError, ValueError) as error:
        raise OutputError(f"{failed}: {_reason(error)}; choose another name") from error
    return target


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
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only once the block has ended well; until then an older file stays.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed; when the block raises,
    the temporary file is removed. Raises OutputError for any failure of the file system.
    """
    target = check_writable(path)
    temporary = target.parent / f".vocabseg-{secrets.token_hex(8)}.part"
    try:
        with open(temporary, "xb") as file:
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
    """A temporary folder beside `target` that takes its name when the block ends well, and vanishes otherwise.

    A folder that has the name by then is replaced, unless `check`, called just before, raises. `what` names the folder
    in errors. Raises OutputError for any failure of the file system.
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
