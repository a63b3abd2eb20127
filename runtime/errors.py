"""Errors a user can cause. Each message is one line: what was wrong, with the value, and what to do."""

from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar, get_args

Found = TypeVar("Found")
# What becomes of an error among many outcomes.
OnError = Literal["raise", "skip", "yield"]


class VocabsegError(Exception):
    """Base of every error that vocabseg raises on purpose; the command line prints it as one line and exits with 2."""


class ImageError(VocabsegError):
    """An image that cannot be read, or an array that is not an image."""


class VideoError(ImageError):
    """A video or camera that cannot be read, or not to its end."""


class VocabularyError(VocabsegError):
    """Class names, prompt templates or seen flags that cannot be used."""


class BundleError(VocabsegError):
    """A bundle that is missing, damaged, newer than this version or unsafe."""


class EngineError(VocabsegError):
    """An engine that is not installed or does not support the request."""


class DeviceMemoryError(EngineError):
    """Not enough free GPU memory for the request."""


class CheckpointError(VocabsegError):
    """Weights that cannot be loaded: missing, extra or misshapen keys, or a file that contains code."""


class ConfigurationError(VocabsegError):
    """An unknown configuration, or a key or value that a configuration does not accept."""


class OutputError(VocabsegError):
    """An output that cannot be written."""


class ServerError(VocabsegError):
    """A server that cannot be reached, does not answer in time, or refuses a request."""


def sifted(outcomes: "Iterable[Found | VocabsegError]", on_error: OnError) -> "Iterator[Found | VocabsegError]":
    """The outcomes in order; an error among them is raised, skipped or yielded, as `on_error` says.

    Raises ConfigurationError for any other word.
    """
    if on_error not in get_args(OnError):
        raise ConfigurationError(f"on_error is {on_error!r}: use one of {', '.join(get_args(OnError))}")
    for outcome in outcomes:
        if on_error == "yield" or not isinstance(outcome, VocabsegError):
            yield outcome
        elif on_error == "raise":
            raise outcome
