"""Open-vocabulary segmentation: `vocabseg.load(bundle)(image, ["cat", "grass"])`."""

from vocabseg.runtime.errors import VocabsegError
from vocabseg.runtime.regions import Regions
from vocabseg.runtime.result import Result
from vocabseg.runtime.segmenter import Segmenter, load
from vocabseg.runtime.vocabulary import Vocabulary

__all__ = ["Regions", "Result", "Segmenter", "Vocabulary", "VocabsegError", "load"]
