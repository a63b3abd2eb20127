"""Captions of the world's regions: class names, their attributes alone, synonyms, and the templates around them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vocabseg.benchmarks.scenes.textures import BACKGROUNDS
from vocabseg.benchmarks.scenes.world import CLASSES, COLOURS, SEEN, SHAPES, SURFACES
from vocabseg.export.tokenizer_file import END, START, build_vocabulary, clip_merges
from vocabseg.runtime.text.prompts import SINGLE, VILD
from vocabseg.runtime.text.tokenizer import Tokenizer

VOCABULARY, CONTEXT = 2048, 24
TEMPLATES = ("{}", "a {}", "the {}", *SINGLE, *VILD)
SYNONYMS = {
    "cyan": ("turquoise",),
    "purple": ("violet",),
    "circle": ("disc",),
    "square": ("box",),
    "cross": ("plus sign",),
    "crescent": ("moon",),
    "ring": ("hoop",),
    "heart": ("love heart",),
    "flower": ("blossom",),
    "grass": ("lawn", "meadow"),
    "sand": ("beach", "desert"),
    "water": ("sea", "lake"),
    "brick wall": ("bricks", "wall"),
    "night sky": ("starry sky", "stars at night"),
    "cloudy sky": ("clouds", "sky with clouds"),
    "wooden floor": ("wood", "planks"),
    "gravel": ("pebbles", "stones"),
}
THINGS = ("thing", "object", "shape")
SEEN_CLASSES = tuple(index for index, seen in enumerate(SEEN) if seen)
OBJECT_COUNT = len(CLASSES) - len(BACKGROUNDS)


def tokenizer() -> Tokenizer:
    """CLIP's tokenizer cut down to its first merges; any text can still be written, in more tokens."""
    merges = clip_merges()[: VOCABULARY - 514]
    return Tokenizer(build_vocabulary(merges), merges, (START, END), CONTEXT)


class Encoder:
    """Texts -> token ids (n, longest) and the place of the end token, remembered per text."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer()
        self.known: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        rows = []
        for text in texts:
            if text not in self.known:
                ids = self.tokenizer.encode(text)[: CONTEXT - 2]
                self.known[text] = [self.tokenizer.start_id, *ids, self.tokenizer.end_id]
            rows.append(self.known[text])
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        return ids, torch.tensor([len(row) - 1 for row in rows])


@dataclass(frozen=True)
class Bank:
    """One wording of every caption kind: texts and where each kind starts.

    Kinds in order: seen classes, colours, shapes, surfaces, surface + seen object class (a sample of them).
    """

    texts: list[str]
    starts: tuple[int, ...]
    detailed: np.ndarray  # (n, 2): surface and class of the last kind


def word(name: str, generator: np.random.Generator) -> str:
    """A word or one of its synonyms."""
    options = (name, *SYNONYMS.get(name, ()))
    return name if generator.random() < 0.75 else str(generator.choice(options))


def class_text(index: int, generator: np.random.Generator) -> str:
    """A class in words, one of its wordings by chance."""
    name = CLASSES[index]
    if index >= OBJECT_COUNT:
        return word(name, generator)
    colour, shape = name.split()
    colour, shape = word(colour, generator), word(shape, generator)
    return f"{colour} {shape}" if generator.random() < 0.85 else f"{shape} that is {colour}"


def bank(generator: np.random.Generator, detailed: int = 24) -> Bank:
    """Captions for one training step, each in a wording and a template drawn by chance."""
    kinds: list[list[str]] = [[class_text(index, generator) for index in SEEN_CLASSES]]
    kinds.append([f"{word(colour, generator)} {generator.choice(THINGS)}" for colour in COLOURS])
    kinds.append([word(shape, generator) for shape in SHAPES])
    kinds.append([f"{surface} {generator.choice(THINGS)}" for surface in SURFACES])
    objects = [index for index in SEEN_CLASSES if index < OBJECT_COUNT]
    pairs = np.stack([generator.integers(len(SURFACES), size=detailed), generator.choice(objects, detailed)], axis=1)
    kinds.append([f"{SURFACES[surface]} {class_text(index, generator)}" for surface, index in pairs])
    texts = [str(generator.choice(TEMPLATES)).format(text) for kind in kinds for text in kind]
    starts = tuple(int(value) for value in np.cumsum([0, *map(len, kinds)]))
    return Bank(texts, starts, pairs)
