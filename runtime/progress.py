"""How long work tells what it is doing."""

from collections.abc import Callable

# Called as progress(what, done, total) while something long goes on.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
