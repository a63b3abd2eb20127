"""Vocabulary: the class names to look for, which of them were seen in training, and how they become prompts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.text.class_names import names_in_text
from vocabseg.runtime.text.prompts import shorten


class Vocabulary:
    """Ordered class names; immutable, hashable, compared by value.

    `names` are stripped of surrounding whitespace. `seen`, (K,) bool or None, says which classes the model was trained
    on: None means none of them, the published rule for other data sets. `templates` override the bundle's prompt.
    """

    __slots__ = ("names", "seen", "templates")

    names: tuple[str, ...]
    seen: np.ndarray | None
    templates: tuple[str, ...] | None

    def __init__(
        self,
        names: Iterable[str],
        seen: Iterable[str] | Sequence[bool] | np.ndarray | None = None,
        templates: Iterable[str] | None = None,
    ):
        """`seen` is a collection of names or one flag per name; each of `templates` contains one `{}`.

        Raises VocabularyError for an empty vocabulary, empty or duplicate names, and invalid flags or templates.
        """
        checked = _checked_names(names)
        object.__setattr__(self, "names", checked)
        object.__setattr__(self, "seen", None if seen is None else _flags(seen, checked))
        object.__setattr__(self, "templates", None if templates is None else _checked_templates(templates))

    @classmethod
    def of(cls, value: "Vocabulary | Iterable[str] | str") -> "Vocabulary":
        """A Vocabulary as it is; names out of a list; or names in a text, as `names_in_text` reads them.

        Such as "cat, grass" or "@names.txt". Raises VocabularyError as the constructor and `names_in_text` do.
        """
        if isinstance(value, Vocabulary):
            return value
        return cls(names_in_text(value) if isinstance(value, str) else value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Vocabulary is immutable: create another one with the {name} that you want")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def _values(self) -> tuple[Any, ...]:
        return self.names, None if self.seen is None else self.seen.tobytes(), self.templates

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Vocabulary) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary, (self.names, self.seen, self.templates)

    def __repr__(self) -> str:
        shown = [repr(_short(name)) for name in self.names[:5]]
        if len(self.names) > len(shown):
            shown.append(f"... {len(self.names)} names")
        parts = [f"[{', '.join(shown)}]"]
        if self.seen is not None:
            parts.append(f"{int(self.seen.sum())} seen")
        if self.templates is not None:
            count = len(self.templates)
            parts.append(f"templates: {_short(self.templates[0])!r}" + (f" and {count - 1} more" if count > 1 else ""))
        return f"Vocabulary({', '.join(parts)})"


def _short(value: object) -> str:
    return shorten(value if isinstance(value, str) else repr(value))


def _items(values: Any, what: str) -> list[Any]:
    """The elements of a collection that must not be a single string."""
    if isinstance(values, str | bytes):
        raise VocabularyError(f"{what} are the single string {_short(values)!r}: give a list of them")
    if isinstance(values, Mapping):
        raise VocabularyError(f"{what} are a dictionary, whose values would be lost: give a list, such as its keys")
    try:
        return list(values)
    except TypeError:
        raise VocabularyError(f"{what} are {_short(values)} of type {type(values).__name__}: give a list") from None


def _checked_names(values: Any) -> tuple[str, ...]:
    names: dict[str, int] = {}
    for position, value in enumerate(_items(values, "class names"), start=1):
        if not isinstance(value, str):
            raise VocabularyError(
                f"class name {position} is {_short(value)} of type {type(value).__name__}: give names as strings"
            )
        name = str(value).strip()
        if not name:
            raise VocabularyError(f"class name {position} is empty: remove it or give it a name")
        if name in names:
            raise VocabularyError(
                f"the class name {_short(name)!r} appears twice, as numbers {names[name]} and {position}: remove one"
            )
        names[name] = position
    if not names:
        raise VocabularyError("the vocabulary is empty: give at least one class name")
    return tuple(names)


def _flags(seen: Any, names: tuple[str, ...]) -> np.ndarray:
    values = _items(seen, "seen classes")
    if all(isinstance(value, str) for value in values):
        listed = {value.strip() for value in values}
        unknown = sorted(listed.difference(names))
        if unknown:
            raise VocabularyError(f"the seen class {_short(unknown[0])!r} is not a class name: add or remove it")
        flags = np.array([name in listed for name in names], bool)
    else:
        for value in values:
            if not isinstance(value, bool | np.bool_ | int | np.integer) or value not in (0, 1):
                raise VocabularyError(
                    f"{_short(value)!r} is not a seen flag: give true or false for each class, or the seen names"
                )
        if len(values) != len(names):
            raise VocabularyError(f"{len(values)} seen flags for {len(names)} names: give one per name")
        flags = np.array(values, bool)
    flags.flags.writeable = False
    return flags


def _checked_templates(values: Any) -> tuple[str, ...]:
    templates = _items(values, "prompt templates")
    if not templates:
        raise VocabularyError("the list of prompt templates is empty: give one or more, such as 'a photo of a {}.'")
    for template in templates:
        braces = "".join(char for char in template if char in "{}") if isinstance(template, str) else ""
        if braces != "{}" or "{}" not in template:
            raise VocabularyError(
                f"the prompt template {_short(template)!r} must contain {{}} once and no other braces: put it "
                "where the class name belongs"
            )
    return tuple(str(template) for template in templates)
