"""What is kept of the pictures on the page: their regions, which every further question is answered from."""

import itertools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from vocabseg.runtime.errors import VocabsegError
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.segmenter.regions import Regions

# Pictures of one page, and of one picture: models whose regions are kept, and answers.
PICTURES, MODELS, ANSWERS = 4, 3, 4
# Pictures of all pages, and bytes of all that is kept; the picture that was used last is kept however large.
ALL_PICTURES, MOST_BYTES = 200, 1 << 30

Model = tuple[str, str]  # name and precision


class Gone(VocabsegError):
    """A picture or an answer that is no longer kept."""


@dataclass
class Kept:
    """A picture (H, W, 3) uint8 RGB, its regions by model, and the last answers, by number; the newest come last.

    `region_bytes` are those of the regions' arrays, which on a GPU are not asked again: it may refuse to give them.
    """

    name: str
    image: np.ndarray
    page: str
    regions: "OrderedDict[Model, Regions]" = field(default_factory=OrderedDict)
    region_bytes: dict[Model, int] = field(default_factory=dict)
    answers: "OrderedDict[int, tuple[Model, Result]]" = field(default_factory=OrderedDict)

    @property
    def bytes(self) -> int:
        """Those of the arrays; of an answer, labels and scores."""
        drawn = sum(result.labels.nbytes + result.scores.nbytes for _, result in self.answers.values())
        return self.image.nbytes + sum(self.region_bytes.values()) + drawn

    def drop_regions(self, model: Model) -> None:
        """Those of a model that are kept."""
        del self.regions[model], self.region_bytes[model]


def _bytes(arrays: Mapping[str, np.ndarray]) -> int:
    # All regions hold the picture's own array.
    return sum(array.nbytes for name, array in arrays.items() if name != "image")


class Shelf:
    """Pictures by a name that cannot be guessed, the last ones used of each page and in all. Thread-safe."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def add(self, kept: Kept) -> str:
        """Keep a picture; its name is returned."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            same = [each for each, other in self._kept.items() if other.page == kept.page]
            for each in same[: max(0, len(same) - PICTURES + 1)]:
                del self._kept[each]
            self._kept[key] = kept
            self._shrink()
        return key

    def picture(self, key: str) -> Kept:
        """Raises Gone where it is no longer kept."""
        with self._lock:
            if key not in self._kept:
                raise Gone("this picture is no longer kept: give it again")
            self._kept.move_to_end(key)
            return self._kept[key]

    def add_regions(self, kept: Kept, model: Model, regions: Regions) -> None:
        """Keep what a model found in a picture; raises EngineError, and keeps nothing, where it cannot be used."""
        size = _bytes(regions.arrays)
        with self._lock:
            kept.regions[model], kept.region_bytes[model] = regions, size
            while len(kept.regions) > MODELS:
                kept.drop_regions(next(iter(kept.regions)))
            self._shrink()

    def forget_other_models(self, models: Collection[Model]) -> bool:
        """Drop what other models than these found and answered, as it holds their networks; whether there was any."""
        dropped = False
        with self._lock:
            for kept in self._kept.values():
                for model in [each for each in kept.regions if each not in models]:
                    kept.drop_regions(model)
                    dropped = True
                for number in [each for each, (model, _) in kept.answers.items() if model not in models]:
                    del kept.answers[number]
                    dropped = True
        return dropped

    def add_answer(self, key: str, kept: Kept, model: Model, result: Result) -> str:
        """Keep a model's answer; its name is returned."""
        number = next(self._numbers)
        with self._lock:
            kept.answers[number] = model, result
            while len(kept.answers) > ANSWERS:
                kept.answers.popitem(last=False)
            self._shrink()
        return f"{key}.{number}"

    def answer(self, name: str) -> tuple[Kept, Result]:
        """The picture and the answer; raises Gone where they are no longer kept."""
        key, _, number = name.partition(".")
        kept = self.picture(key)
        with self._lock:
            found = kept.answers.get(int(number)) if number.isascii() and number.isdecimal() else None
        if found is None:
            raise Gone("this answer is no longer kept: ask again")
        return kept, found[1]

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        with self._lock:
            return sum(kept.bytes for kept in self._kept.values())

    def _shrink(self) -> None:
        total = sum(kept.bytes for kept in self._kept.values())
        while len(self._kept) > ALL_PICTURES or (total > self._most_bytes and len(self._kept) > 1):
            _, dropped = self._kept.popitem(last=False)
            total -= dropped.bytes
