"""Open-vocabulary segmentation: `vocabseg.load(bundle)(image, ["cat", "grass"])`."""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vocabseg.runtime.errors import VocabsegError
    from vocabseg.runtime.result.result import Result
    from vocabseg.runtime.segmenter.opening import load
    from vocabseg.runtime.segmenter.regions import Regions
    from vocabseg.runtime.segmenter.segmenter import Segmenter
    from vocabseg.runtime.text.vocabulary import Vocabulary
    from vocabseg.video.segmentation import segment_video

# Read when ONNX Runtime is imported; without it, 1.32 keeps a device id and a log of runs in the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__: str
__all__ = ["Regions", "Result", "Segmenter", "VocabsegError", "Vocabulary", "load", "segment_video"]

# Where each public name lives: imported when first used, so that `vocabseg --help` and the exporter load nothing else.
_HOMES = {
    "Regions": "vocabseg.runtime.segmenter.regions",
    "Result": "vocabseg.runtime.result.result",
    "Segmenter": "vocabseg.runtime.segmenter.segmenter",
    "Vocabulary": "vocabseg.runtime.text.vocabulary",
    "VocabsegError": "vocabseg.runtime.errors",
    "load": "vocabseg.runtime.segmenter.opening",
    "segment_video": "vocabseg.video.segmentation",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("vocabseg")
    if name not in _HOMES:
        raise AttributeError(f"module 'vocabseg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
