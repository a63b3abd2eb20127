"""Progress reports of long operations."""

from collections.abc import Callable

# Called as progress(what, done, total) during a long operation.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""
