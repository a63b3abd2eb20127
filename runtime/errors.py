"""Errors a user can cause. Each message is one line: what was wrong, with the value, and what to do."""


class VocabsegError(Exception):
    """Base of every error that vocabseg raises on purpose; the command line prints it as one line and exits with 2."""


class ImageError(VocabsegError):
    """An image that cannot be read, or an array that is no image."""


class VocabularyError(VocabsegError):
    """Class names, prompt templates or seen flags that cannot be used."""


class BundleError(VocabsegError):
    """A bundle that is missing, damaged, newer than this version or unsafe."""


class EngineError(VocabsegError):
    """An engine that is not installed, or does not support what was asked of it."""


class DeviceMemoryError(EngineError):
    """A GPU without enough free memory for what was asked of it."""


class CheckpointError(VocabsegError):
    """Weights that cannot be loaded: missing, extra or misshapen keys, or a file that holds code."""


class ConfigurationError(VocabsegError):
    """An unknown configuration, or a key or value that a configuration does not have."""


class OutputError(VocabsegError):
    """A place where the output cannot be written."""


class ServerError(VocabsegError):
    """A server that cannot be reached, does not answer in time, or refuses a request."""
