"""What can go wrong in a calibration."""

from vocabseg.runtime.errors import VocabsegError


class CalibrationError(VocabsegError):
    """Images, a graph or a budget that cannot be used for a calibration."""
