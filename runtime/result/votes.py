"""Why a pixel has its label: which masks voted for it, with which weight, and what each of them was taken for."""

import operator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.result.evidence import Evidence

# Names listed for each opinion.
BEST_NAMES = 5


@dataclass(frozen=True)
class Rating:
    """A class and a number for it: a probability, or a score. `seen` is None where that is not known."""

    name: str
    value: float
    seen: bool | None


@dataclass(frozen=True)
class Vote:
    """What one mask contributes to a class at a pixel.

    Attributes:
        mask: the mask's place among all masks of the image.
        weight: the mask's probability at the pixel, 0..1.
        votes: the weight times the mask's class probability; over all masks they add up to the class's score.
        no_object: the probability that the query is "no object"; None for user-supplied masks.
        box: tight (x1, y1, x2, y2) in pixels of the image, x2 and y2 exclusive; None for a mask that is empty after
            thresholding, and where it is not known.
        area: pixels above the threshold, scaled to the image; -1 for a mask that the region budget dropped; None where
            it is not known.
        shares: the mask whose crop and embedding this one shares under a region budget; None where it has its own, or
            none.
        combined: the classes of the highest probabilities, best first: those that vote.
        query: the same by the query embedding alone; none for user-supplied masks, and where it is not known.
        clip: the same by CLIP's image encoder alone; none for a mask without a crop, and where it is not known.
    """

    mask: int
    weight: float
    votes: float
    no_object: float | None
    box: tuple[float, float, float, float] | None
    area: int | None
    shares: int | None
    combined: tuple[Rating, ...]
    query: tuple[Rating, ...]
    clip: tuple[Rating, ...]


@dataclass(frozen=True)
class Explanation:
    """Why a pixel has its label.

    Attributes:
        x, y: the pixel's column and row.
        label: the class of the pixel; None where the label is -1.
        explained: the class whose votes are listed, and its score here.
        query_power: the exponent of the query's probability in the mean that makes the class probabilities of
            `explained`, CLIP's being 1 minus it; None where it is not known.
        scores: the classes of the highest scores at this pixel, best first.
        votes: one for every mask that votes, most votes first.
    """

    x: int
    y: int
    label: str | None
    explained: Rating
    query_power: float | None
    scores: tuple[Rating, ...]
    votes: tuple[Vote, ...]

    def to_json(self, masks: int | None = None) -> dict[str, Any]:
        """A dictionary of plain types with the attributes; of the votes the first `masks`, and the sum of the others.

        "others" is {"masks": how many, "votes": their sum}.
        """
        shown = len(self.votes) if masks is None else masks
        others = {"masks": len(self.votes[shown:]), "votes": sum(vote.votes for vote in self.votes[shown:])}
        return {**asdict(self), "votes": [asdict(vote) for vote in self.votes[:shown]], "others": others}


def explain_pixel(
    evidence: Evidence, classes: list[str], labels: np.ndarray, x: int, y: int, explained: int | None, best: int
) -> Explanation:
    """The explanation of a pixel of `labels` (H, W); `explained` is a class's index, None the pixel's own class.

    Raises ImageError for a pixel outside the image, and for numbers that are not whole.
    """
    try:
        x, y = operator.index(x), operator.index(y)
    except TypeError:
        raise ImageError(f"the pixel {x!r},{y!r} is none: give its column and row as whole numbers") from None
    check_pixel(x, y, labels.shape)
    weights = evidence.kernels.resample_masks_at(evidence.masks, [y], [x])[:, 0, 0]
    scores = weights @ evidence.class_probabilities
    label = int(labels[y, x])
    chosen = explained if explained is not None else label if label >= 0 else int(scores.argmax())
    votes = weights * evidence.class_probabilities[:, chosen]
    opinions = evidence.opinions
    seen = None if opinions is None else opinions.seen
    return Explanation(
        x=x,
        y=y,
        label=classes[label] if label >= 0 else None,
        explained=Rating(classes[chosen], float(scores[chosen]), None if seen is None else bool(seen[chosen])),
        query_power=None if opinions is None else float(opinions.query_power[chosen]),
        scores=_ratings(scores, classes, seen, best),
        votes=tuple(
            Vote(weight=float(weights[row]), votes=float(votes[row]), **_described(evidence, row, classes, best))
            for row in np.argsort(-votes, kind="stable").tolist()
        ),
    )


def check_pixel(x: int, y: int, size: tuple[int, ...]) -> None:
    """Raise ImageError for a pixel outside an image of `size` (H, W)."""
    height, width = size
    if not (0 <= x < width and 0 <= y < height):
        raise ImageError(
            f"the pixel {x},{y} is outside the image of {width} x {height} pixels: give x from 0 to {width - 1} and y "
            f"from 0 to {height - 1}"
        )


def _described(evidence: Evidence, row: int, classes: list[str], best: int) -> dict[str, Any]:
    """What is known of a mask, wherever it votes."""
    combined, no_object = evidence.class_probabilities[row], float(evidence.no_object[row])
    opinions = evidence.opinions
    if opinions is None:
        unknown: dict[str, Any] = {"box": None, "area": None, "shares": None, "query": (), "clip": ()}
        return {"mask": row, "no_object": no_object, "combined": _ratings(combined, classes, None, best), **unknown}
    box = tuple(opinions.boxes[row].tolist())
    return {
        "mask": int(opinions.numbers[row]),
        "shares": opinions.shares(row),
        "no_object": None if opinions.query is None else no_object,
        "box": box if any(box) else None,
        "area": int(opinions.areas[row]),
        "combined": _ratings(combined, classes, opinions.seen, best),
        "query": () if opinions.query is None else _ratings(opinions.query[row], classes, opinions.seen, best),
        "clip": () if opinions.clip is None else _ratings(opinions.clip[row], classes, opinions.seen, best),
    }


def _ratings(values: np.ndarray, classes: list[str], seen: np.ndarray | None, best: int) -> tuple[Rating, ...]:
    """The `best` highest of `values` (C,), which are all NaN where there is no opinion."""
    if np.isnan(values).any():
        return ()
    order = np.argsort(-values, kind="stable")[:best].tolist()
    return tuple(
        Rating(classes[index], float(values[index]), None if seen is None else bool(seen[index])) for index in order
    )
