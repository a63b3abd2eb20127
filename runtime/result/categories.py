"""Categories: what is known of the classes besides their names, such as from a file: ids, colours, which are things."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.result.colours import Colour, class_colours

GREY: Colour = (128, 128, 128)
# Ids are written as JSON numbers, which readers may keep in 53 bits, and often in 32.
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Categories:
    """Of K classes, by index; None for what is not known of any.

    Attributes:
        ids: (K,) the numbers that JSON outputs call "category_id"; without them, the indices.
        colours: (K,) RGB, or None for a class with the palette's colour.
        things: (K,) whether a class is countable; without it, every class is.
        other: the index of the contrast class, which is grey and in no panoptic segment.
    """

    ids: tuple[int, ...] | None = None
    colours: tuple[Colour | None, ...] | None = None
    things: tuple[bool, ...] | None = None
    other: int | None = None

    @property
    def known(self) -> bool:
        """Whether anything is."""
        return self != Categories()

    def id_of(self, index: int) -> int:
        return index if self.ids is None else self.ids[index]

    def palette(self, count: int) -> np.ndarray:
        """The colours (count, 3) uint8 RGB of the classes."""
        table = class_colours(count)
        for index, colour in enumerate(self.colours or ()):
            if colour is not None:
                table[index] = colour
        if self.other is not None:
            table[self.other] = GREY
        return table

    def countable(self, count: int) -> list[int]:
        """The indices of the things among `count` classes, without the contrast class."""
        flags = (True,) * count if self.things is None else self.things
        return [index for index, flag in enumerate(flags) if flag and index != self.other]

    def described(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """COCO's categories: {"id", "name", "isthing": 0 or 1, "color": [r, g, b]} per class."""
        things, colours = set(self.countable(len(classes))), self.palette(len(classes)).tolist()
        return [
            {"id": self.id_of(index), "name": name, "isthing": int(index in things), "color": colours[index]}
            for index, name in enumerate(classes)
        ]


def checked_categories(
    names: Sequence[str], ids: Any, colours: Any, things: Any, added: int = 0, other: bool = False
) -> Categories:
    """The categories of `names`, and of a contrast class after them if `other`, from one value per name or None.

    Ids are different whole numbers from 0; colours "#rrggbb", three numbers 0..255, or None; things truth values. The
    last `added` names, and the contrast class, have none: their ids are those after the highest, and the former are
    things. Raises VocabularyError for others.
    """
    names = names[: len(names) - added]
    for what, values in (("ids", ids), ("colours", colours), ("things", things)):
        if values is not None and (isinstance(values, str) or not hasattr(values, "__len__")):
            raise VocabularyError(f"{what} are {values!r:.60} of type {type(values).__name__}: give a list")
        if values is not None and len(values) != len(names):
            raise VocabularyError(f"{len(values)} {what} for {len(names)} classes: give one for each")
    numbers = None if ids is None else tuple(map(_id, names, ids))
    if numbers is not None:
        if len(set(numbers)) < len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise VocabularyError(f"the id {twice} is that of two classes: give each its own")
        numbers = (*numbers, *(max(numbers, default=-1) + 1 + place for place in range(added + other)))
    shades = None if colours is None else (*map(_colour, names, colours), *[None] * (added + other))
    flags = None if things is None else (*map(_flag, names, things), *[True] * added, *[False] * other)
    return Categories(numbers, shades, flags, len(names) + added if other else None)


def _id(name: str, value: Any) -> int:
    number = value
    if isinstance(value, str):
        number = int(value) if re.fullmatch(r"\s*\d{1,10}\s*", value) else None
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < LARGEST_ID:
        raise VocabularyError(
            f"the id {value!r:.60} of class {name!r:.60} is no whole number from 0 to {LARGEST_ID - 1}"
        )
    return int(number)


def _colour(name: str, value: Any) -> Colour | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        from PIL import ImageColor

        try:
            red, green, blue, *_ = ImageColor.getrgb(value.strip())
            return red, green, blue
        except ValueError:
            pass
    elif isinstance(value, list | tuple | np.ndarray):
        parts = list(value)
        if len(parts) == 3 and all(isinstance(part, int | np.integer) and 0 <= part <= 255 for part in parts):
            return int(parts[0]), int(parts[1]), int(parts[2])
    raise VocabularyError(
        f"the colour {value!r:.60} of class {name!r:.60} is none: write #rrggbb, or three numbers from 0 to 255"
    )


def _flag(name: str, value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    flag = words.get(str(value).strip().lower())
    if flag is None:
        raise VocabularyError(f"isthing {value!r:.60} of class {name!r:.60} is no yes or no: write 1 or 0")
    return flag
