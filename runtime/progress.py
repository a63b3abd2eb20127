"""Progress reports of long operations, and numbers of things in them."""

from collections.abc import Callable

# Called as progress(what, done, total) during a long operation.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 image", "2,000 images", "3 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"
