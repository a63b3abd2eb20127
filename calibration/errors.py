"""What goes wrong in a calibration."""

from vocabseg.runtime.errors import VocabsegError


class CalibrationError(VocabsegError):
    """Images, a graph or a budget that a calibration cannot be made with."""
