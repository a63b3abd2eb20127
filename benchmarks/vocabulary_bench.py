"""`python -m vocabseg.benchmarks.vocabulary_bench`: what synonyms, a contrast class and example images do to accuracy.

The demo model on rendered test scenes: networks run once per scene, then every vocabulary is asked. Prints a table:
mean IoU of the classes asked for; the share of their pixels that were found; and false positives, the share of all
other pixels that were given one of the classes. Examples are objects and backgrounds of validation scenes.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import msgspec
import numpy as np

from vocabseg.benchmarks.scenes.world import CLASSES, OBJECTS, Scene, render_scene
from vocabseg.runtime.segmenter.opening import load
from vocabseg.runtime.segmenter.regions import Regions
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import OTHER, Vocabulary

# Words that the demo model's captions had for those of its class names.
WORDS = {"cyan": "turquoise", "purple": "violet", "circle": "disc", "square": "box", "crescent": "moon", "ring": "hoop"}
SURFACES = {"grass": "lawn", "sand": "beach", "water": "sea", "brick wall": "bricks", "night sky": "starry sky"}
# Words that mean nothing to it, such as a label of one's own.
LABEL = "my class no. {}"
EXAMPLE_PIXELS = 400
HEAD = f"{'mIoU':>6}{'recall':>9}{'false +':>9}"
# Present and absent classes among those asked for.
QUESTIONS = ((1, 4), (2, 3), (0, 5))

Ask = Callable[[Scene, np.random.Generator], tuple[Vocabulary, list[int]]]


@dataclass(frozen=True)
class Found:
    """Percent; `iou` by class, NaN where it was neither there nor found."""

    iou: np.ndarray
    recall: float
    false_positives: float

    def row(self, name: str, part: Sequence[int] | None = None) -> str:
        iou = self.iou if part is None else self.iou[list(part)]
        shown = f"{np.nanmean(iou):6.1f}" if np.isfinite(iou).any() else "     -"
        return f"{name:<58}{shown}{self.recall:9.1f}{self.false_positives:9.1f}"


def measure(scenes: Sequence[Scene], regions: Sequence[Regions], ask: Ask) -> Found:
    """`ask` gives a scene's vocabulary, and the index in CLASSES of each of its classes but the contrast class."""
    count = len(CLASSES)
    inside, union = np.zeros(count), np.zeros(count)
    wrong = free = right = there = 0
    generator = np.random.default_rng(0)
    for scene, found in zip(scenes, regions, strict=True):
        vocabulary, asked = ask(scene, generator)
        labels = np.array([*asked, count])[found.classify(vocabulary).labels]
        truth = np.where(np.isin(scene.labels, asked), scene.labels, count)
        cells = np.bincount((labels * (count + 1) + truth).ravel(), minlength=(count + 1) ** 2)
        table = cells.reshape(count + 1, count + 1)
        inside += np.diag(table)[:count]
        union += (table.sum(0) + table.sum(1) - np.diag(table))[:count]
        wrong, free = wrong + table[:count, count].sum(), free + table[:, count].sum()
        right, there = right + np.diag(table)[:count].sum(), there + table[:, :count].sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return Found(100 * inside / union, 100 * right / max(there, 1), 100 * wrong / max(free, 1))


def whole(vocabulary: Vocabulary) -> Ask:
    """One vocabulary of all classes for every scene, by names of CLASSES, their synonyms or labels."""
    places = {word(index): index for index in range(len(CLASSES)) for word in (LABEL.format, _synonym_of, _name_of)}
    asked = [places[name] for name in vocabulary.names if name != OTHER]
    return lambda scene, generator: (vocabulary, asked)


def _name_of(index: int) -> str:
    return CLASSES[index]


def _synonym_of(index: int) -> str:
    return synonym(CLASSES[index])


def some(present: int, absent: int, names: Sequence[str], **options: object) -> Ask:
    """So many classes that are in a scene and so many that are not, drawn at random, by `names`."""

    def ask(scene: Scene, generator: np.random.Generator) -> tuple[Vocabulary, list[int]]:
        there = np.unique(scene.labels)
        away = np.setdiff1d(np.arange(len(CLASSES)), there)
        chosen = [
            generator.choice(there, min(present, len(there)), replace=False),
            generator.choice(away, absent, False),
        ]
        asked = [int(index) for index in np.concatenate(chosen)]
        return Vocabulary([names[index] for index in asked], **options), asked  # type: ignore[arg-type]

    return ask


def without_names(regions: Sequence[Regions]) -> list[Regions]:
    """The same regions of a bundle that declares no vocabulary."""
    text = regions[0].text
    manifest = msgspec.structs.replace(text.bundle.manifest, vocabulary=None, seen=None)
    segmenter = Segmenter(text.bundle.with_manifest(manifest), device="cpu")
    copies = [copy(found) for found in regions]
    for found in copies:
        found.text = segmenter.text
    return copies


def synonym(name: str) -> str:
    return SURFACES.get(name) or " ".join(WORDS.get(word, word) for word in name.split())


def examples(count: int) -> dict[int, list[dict[str, np.ndarray]]]:
    """So many objects or backgrounds of each class, from validation scenes: {"image", "mask"} by class."""
    found: dict[int, list[dict[str, np.ndarray]]] = {index: [] for index in range(len(CLASSES))}
    number = 0
    while min(map(len, found.values())) < count:
        scene = render_scene(0, "val", number)
        number += 1
        for segment in scene.segments:
            mask, shown = scene.segmentation == segment.id, found[segment.class_index]
            if len(shown) < count and np.count_nonzero(mask) > EXAMPLE_PIXELS:
                shown.append({"image": scene.image, "mask": mask})
    return found


def rows(scenes: Sequence[Scene], regions: Sequence[Regions]) -> Iterator[str]:
    """The table, line by line."""
    indices = range(len(CLASSES))
    label = [LABEL.format(index) for index in indices]

    def line(name: str, ask: Ask, part: Sequence[int] | None = None) -> str:
        return measure(scenes, regions, ask).row(name, part)

    yield f"{'all classes':<58}{HEAD}"
    yield line("names", whole(Vocabulary(CLASSES)))
    yield line("synonyms instead", whole(Vocabulary([synonym(name) for name in CLASSES])))
    yield line("labels that mean nothing", whole(Vocabulary(label)))
    pairs = [f"{a}|{b}" for a, b in zip(label, CLASSES, strict=True)]
    yield line("labels that mean nothing | names", whole(Vocabulary(pairs)))
    several = [name if synonym(name) == name else f"{name}|{synonym(name)}" for name in CLASSES]
    yield line("names | synonyms", whole(Vocabulary(several)))
    yield line("names, and other", whole(Vocabulary(CLASSES, other=True)))
    for present, absent in QUESTIONS:
        yield f"\n{f'{present} classes that are there, {absent} that are not':<58}{HEAD}"
        yield line("names alone", some(present, absent, CLASSES))
        asked = some(present, absent, CLASSES, other=True)
        yield measure(scenes, without_names(regions), asked).row("other, by common words alone")
        yield line("other, by the bundle's names and common words", asked)
        yield line("the same with synonyms", some(present, absent, [synonym(name) for name in CLASSES], other=True))
    chosen = np.random.default_rng(0).permutation(len(OBJECTS))[: len(OBJECTS) // 2].tolist()
    yield f"\n{'half of the objects by examples; mIoU of these':<58}{HEAD}"
    yield line("none: names", whole(Vocabulary(CLASSES)), chosen)
    for count in (1, 4):
        shown = examples(count)
        named = [name for index, name in enumerate(CLASSES) if index not in chosen]
        own = {label[index]: shown[index] for index in chosen}
        beside = {f"{label[index]}|{CLASSES[index]}": shown[index] for index in chosen}
        yield line(f"{count} each, no names", whole(Vocabulary(named, examples=own)), chosen)
        yield line(f"{count} each, no names, and other", whole(Vocabulary(named, examples=own, other=True)), chosen)
        yield line(f"{count} each, beside names", whole(Vocabulary(named, examples=beside)), chosen)
        every = {label[index]: shown[index] for index in indices}
        yield line(f"{count} each of all classes, no names", whole(Vocabulary.from_images(every)), chosen)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--scenes", type=int, default=200)
    options = parser.parse_args()
    segmenter = load(device="cpu")
    scenes = [render_scene(0, "test", number) for number in range(options.scenes)]
    regions = [segmenter.propose(scene.image) for scene in scenes]
    for line in rows(scenes, regions):
        print(line, flush=True)


if __name__ == "__main__":
    main()
