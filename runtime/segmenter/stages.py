"""What the two implementations of the pipeline have in common: the protocol `Stages`, and how it is observed.

An image goes through these steps, each of which leaves its arrays on the device that runs it:

    prepare   image -> resized, normalised and padded network input
    propose   network input -> mask logits of N proposals, and their query embeddings if the network has any
    describe  mask logits -> boxes and areas; V of the masks are regions
    encode    regions -> crops -> embeddings
    classify  embeddings x text embeddings -> class probabilities
    compose   mask logits x class probabilities -> labels and scores
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vocabseg.runtime.bundle.sections import InputSection
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.kernels.geometry import padded_size, resized_size
from vocabseg.runtime.masks import Masks, Size
from vocabseg.runtime.progress import Progress

if TYPE_CHECKING:
    from vocabseg.runtime.result.result import Result
    from vocabseg.runtime.segmenter.regions import Regions
    from vocabseg.runtime.text.vocabulary import Vocabulary


def input_sizes(spec: InputSection, height: int, width: int) -> tuple[Size, Size]:
    """The resized size (h, w) of an image, and the size (Hp, Wp) of the proposal network's input, which it is part of.

    Raises ValueError for an image without pixels.
    """
    if spec.size is None:
        size = resized_size(height, width, spec.min_size, spec.max_size)
        return size, padded_size(*size, spec.divisor)
    if spec.fit == "stretch":
        return spec.size, spec.size
    (high, wide), scale = spec.size, min(spec.size[0] / height, spec.size[1] / width)
    return (min(max(int(height * scale + 0.5), 1), high), min(max(int(width * scale + 0.5), 1), wide)), spec.size


class Mark(Protocol):
    """A point in the work: reached at once on the host, and on a GPU when its stream has run up to it."""

    def synchronize(self) -> None: ...
    def elapsed_since(self, other: Any) -> float:
        """Milliseconds."""
        ...


class Observer(Protocol):
    """Is notified when stages begin and end, and of the arrays they produce."""

    def stage(self, name: str, begin: Mark, end: Mark) -> None: ...
    def note(self, name: str, arrays: Mapping[str, Any]) -> None: ...


class Proposals(Protocol):
    """One image in progress; its contents are private to the stages."""

    @property
    def masks(self) -> Masks: ...
    @property
    def has_queries(self) -> bool:
        """False for user-supplied masks, and those of networks without."""
        ...


class Pending(Protocol):
    """A result that is being copied to the host."""

    def result(self) -> "Result": ...


class Stages(Protocol):
    """The pipeline's steps on one device; `observer`, if set, is notified of them."""

    observer: Observer | None

    def turn(self) -> AbstractContextManager[Any]:
        """Must be held while starting work: threads that share a GPU take turns."""
        ...

    def load(self, image: Any) -> Any:
        """The pixels (H, W, 3) uint8 RGB of any supported source; raises ImageError."""
        ...

    def prepare(self, image: Any) -> Any: ...
    def propose(self, prepared: Any) -> Proposals: ...
    def given(self, image: Any, resized: np.ndarray, masks: Masks, query_embeddings: np.ndarray | None) -> Proposals:
        """Replaces the first two steps with existing proposals on the host."""
        ...

    def describe(self, proposals: Any) -> None: ...
    def encode(self, proposals: Any, progress: Progress) -> None: ...
    def finish(self, proposals: Any) -> "Mapping[str, np.ndarray]":
        """What remains of an image for its Regions, by name: arrays that are copied to the host on access.

        mask_logits, query_embeddings (if there are any), boxes (V, 4), areas (N,), and embeddings (V, D)
        of unit length if crops were encoded.
        """
        ...

    def classify(self, regions: "Regions", vocabulary: "Vocabulary") -> Any: ...
    def compose(self, regions: "Regions", votes: Any, vocabulary: "Vocabulary") -> Pending: ...


def unusable(graph: str, output: str) -> EngineError:
    """The error for an output of a graph that holds infinities, NaN or vectors of zeros, such as after an overflow."""
    return EngineError(f"the {graph} gave no usable {output} (zero, infinite or not a number): use precision float32")


def check_usable(graph: str, **outputs: np.ndarray) -> None:
    """Raise EngineError for an output that holds an infinity or NaN."""
    for name, array in outputs.items():
        # NumPy's least and greatest are NaN if any value is, and need no memory.
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise unusable(graph, name)


UNOBSERVED = nullcontext()


class Moment:
    """A reading of the host's clock, as a Mark."""

    def __init__(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_since(self, other: "Moment") -> float:
        return 1000 * (self.seconds - other.seconds)


class Observed:
    """Notifies an observer of stages; a base class of both implementations."""

    observer: Observer | None = None

    def mark(self, stream: Any = None) -> Mark:
        return Moment() if stream is None else stream.record()

    def stage(self, name: str, stream: Any = None) -> AbstractContextManager[None]:
        """Work started inside the block is one stage."""
        return UNOBSERVED if self.observer is None else self._observed(self.observer, name, stream)

    @contextmanager
    def _observed(self, observer: Observer, name: str, stream: Any) -> Iterator[None]:
        begin = self.mark(stream)
        yield
        observer.stage(name, begin, self.mark(stream))

    def note(self, name: str, **arrays: Any) -> None:
        """Report arrays that a stage produced."""
        if self.observer is not None:
            self.observer.note(name, arrays)
