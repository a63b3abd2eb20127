"""Vocabulary: the classes to look for and their names, which were seen in training, and how they become prompts."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vocabseg.runtime.errors import VocabularyError
from vocabseg.runtime.result.categories import Categories, checked_categories
from vocabseg.runtime.text.class_names import SEPARATOR, classes_in_text
from vocabseg.runtime.text.examples import ExampleImage, checked_examples
from vocabseg.runtime.text.prompts import shorten

# By what the contrast class is shown.
OTHER = "other"


class Vocabulary:
    """Ordered classes; immutable, hashable, compared by value.

    Attributes:
        names: (K,) the name by which each class is shown, stripped of surrounding whitespace. With a contrast class it
            is the last one, called "other".
        synonyms: all names of each class but the contrast class, the shown one first. A class is as similar to an
            embedding as the most similar of its names, which is decided before the softmax over the classes.
        seen: (K,) bool or None: which classes the model was trained on; None means none of them, the published rule
            for other data sets. The contrast class is never one of them.
        templates: prompt templates that override the bundle's, or None.
        contrast: None without a contrast class; its names; or () for those that are chosen for a bundle
            (`TextEmbedder.names`).
        categories: the classes' ids, colours, and which are things.
        examples: (K,) of each class the images that show it. The first name of a class with examples is only its
            label; what follows it describes the class beside the images, so "cat|cat" is both.
    """

    __slots__ = ("categories", "contrast", "examples", "names", "seen", "synonyms", "templates")

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    seen: np.ndarray | None
    templates: tuple[str, ...] | None
    contrast: tuple[str, ...] | None
    categories: Categories
    examples: tuple[tuple[ExampleImage, ...], ...]

    def __init__(
        self,
        names: Iterable[str],
        seen: Iterable[str] | Sequence[bool] | np.ndarray | None = None,
        templates: Iterable[str] | None = None,
        other: bool | Iterable[str] = False,
        ids: Sequence[int] | None = None,
        colours: Sequence[Any] | None = None,
        things: Sequence[bool] | None = None,
        examples: Mapping[str, Sequence[Any]] | None = None,
    ):
        """Classes by their names; "cat|kitten|tabby" is one class with three, shown as "cat".

        `seen` is a collection of shown names or one flag per class; each of `templates` contains one `{}`. `other` adds
        the contrast class, which gets what fits its own names better than those of any other class: True, or a list of
        its names. `ids`, `colours` and `things` are one value per class, as for `checked_categories`. Raises
        VocabularyError for an empty vocabulary, empty or duplicate names, and invalid flags, templates or categories.

        `examples` are images by shown name, each as `ExampleImage.of` takes it; names that are not among `names` become
        further classes. Raises VocabularyError for images that cannot be used.
        """
        images = {} if examples is None else checked_examples(examples)
        listed = _items(names, "class names")
        given, count = {_first(value) for value in listed}, len(listed)
        listed += [key for key in images if _first(key) not in given]
        images = {_first(key): value for key, value in images.items()}
        synonyms = _checked_names(listed, images)
        shown = tuple(group[0] for group in synonyms)
        flags = None if seen is None else _flags(seen, shown)
        contrast = None if other is False else () if other is True else _checked_contrast(other, synonyms)
        added = len(synonyms) - count
        categories = checked_categories(shown, ids, colours, things, added, contrast is not None)
        if contrast is not None:
            if OTHER in shown:
                raise VocabularyError(f"the class name {OTHER!r} is that of the contrast class: choose another name")
            shown = (*shown, OTHER)
            flags = None if flags is None else _read_only(np.append(flags, False))
        object.__setattr__(self, "names", shown)
        object.__setattr__(self, "synonyms", synonyms)
        object.__setattr__(self, "seen", flags)
        object.__setattr__(self, "templates", None if templates is None else _checked_templates(templates))
        object.__setattr__(self, "contrast", contrast)
        object.__setattr__(self, "categories", categories)
        object.__setattr__(self, "examples", tuple(images.get(name, ()) for name in shown))

    @classmethod
    def of(cls, value: "Vocabulary | Iterable[str] | str") -> "Vocabulary":
        """A Vocabulary as it is; names out of a list; or classes in a text, as `classes_in_text` reads them.

        Such as "cat, grass" or "@names.txt". Raises VocabularyError as the constructor and `classes_in_text` do.
        """
        if isinstance(value, Vocabulary):
            return value
        return cls(**classes_in_text(value).arguments()) if isinstance(value, str) else cls(value)

    @classmethod
    def from_images(cls, examples: Mapping[str, Sequence[Any]], **others: Any) -> "Vocabulary":
        """Classes that are shown by images: {"my logo": ["a.png", "b.png"]}; `others` are the constructor's arguments.

        Raises VocabularyError as the constructor does.
        """
        return cls([], examples=examples, **others)

    def replace(self, **changes: Any) -> "Vocabulary":
        """The same vocabulary with other arguments of the constructor; raises VocabularyError as that does."""
        return Vocabulary(**(self.arguments() | changes))

    def arguments(self) -> dict[str, Any]:
        """What the constructor makes an equal vocabulary of."""
        count, known = len(self.synonyms), self.categories
        return {
            "names": list(self.written),
            "seen": None if self.seen is None else self.seen[:count].tolist(),
            "templates": None if self.templates is None else list(self.templates),
            "other": False if self.contrast is None else list(self.contrast) or True,
            "ids": None if known.ids is None else list(known.ids[:count]),
            "colours": None if known.colours is None else [colour and list(colour) for colour in known.colours[:count]],
            "things": None if known.things is None else list(known.things[:count]),
            "examples": {name: list(one) for name, one in zip(self.names, self.examples, strict=True) if one} or None,
        }

    def described(self) -> dict[str, Any]:
        """`arguments` as plain types, with the SHA-256 of example images as "shown"."""
        arguments = self.arguments()
        shown = arguments.pop("examples") or {}
        digests = {name: [image.digest for image in images] for name, images in shown.items()}
        return {**arguments, "shown": digests} if digests else arguments

    @property
    def written(self) -> tuple[str, ...]:
        """The names of every class but the contrast class as the constructor takes them, such as "cat|kitten"."""
        return tuple(SEPARATOR.join(group) for group in self.synonyms)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The names of every class but the contrast class that are compared with the image."""
        pairs = zip(self.synonyms, self.examples[: len(self.synonyms)], strict=True)
        return tuple(group[1:] if images else group for group, images in pairs)

    @property
    def spoken(self) -> tuple[str, ...]:
        """Every name that is compared with the image, given ones of the contrast class last."""
        return (*itertools.chain(*self.texts), *(self.contrast or ()))

    @property
    def plain(self) -> bool:
        """Whether every class has one name and no example, and none is the contrast class."""
        return self.contrast is None and all(len(group) == 1 for group in self.synonyms) and not any(self.examples)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Vocabulary is immutable: create another one with the {name} that you want")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def _values(self) -> tuple[Any, ...]:
        seen = None if self.seen is None else self.seen.tobytes()
        return self.synonyms, seen, self.templates, self.contrast, self.categories, self.examples

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Vocabulary) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.arguments(),)

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


def _restored(arguments: dict[str, Any]) -> Vocabulary:
    return Vocabulary(**arguments)


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


def _first(value: Any) -> Any:
    return value.split(SEPARATOR)[0].strip() if isinstance(value, str) else value


def _checked_names(values: Any, shown: Mapping[str, Any] | None = None) -> tuple[tuple[str, ...], ...]:
    """The names of each class; those of `shown` have examples, and may repeat their label."""
    groups: list[tuple[str, ...]] = []
    places: dict[str, int] = {}
    for position, value in enumerate(_items(values, "class names"), start=1):
        if not isinstance(value, str):
            raise VocabularyError(
                f"class name {position} is {_short(value)} of type {type(value).__name__}: give names as strings"
            )
        group = tuple(name.strip() for name in value.split(SEPARATOR))
        for place, name in enumerate(group):
            if place and name == group[0] and name in (shown or ()):
                continue
            if not name:
                what = "is empty" if len(group) == 1 else f"{_short(value)!r} has an empty synonym"
                raise VocabularyError(f"class name {position} {what}: remove it or give it a name")
            if name in places:
                raise VocabularyError(
                    f"the class name {_short(name)!r} appears twice, as numbers {places[name]} and {position}: "
                    "remove one"
                )
            places[name] = position
        groups.append(group)
    if not groups:
        raise VocabularyError("the vocabulary is empty: give at least one class name")
    return tuple(groups)


def _checked_contrast(values: Any, synonyms: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The contrast class's own names, none of which may be a class's."""
    names = tuple(itertools.chain(*_checked_names(_items(values, "contrast names"))))
    for name in names:
        if any(name in group for group in synonyms):
            raise VocabularyError(f"{_short(name)!r} is a class name and a contrast name: remove one")
    return names


def _read_only(flags: np.ndarray) -> np.ndarray:
    flags.flags.writeable = False
    return flags


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
    return _read_only(flags)


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
