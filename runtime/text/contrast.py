"""The contrast class: names of what is in most pictures, so that what fits no class has somewhere else to go.

A softmax over a few names chooses one of them for every region, however little it fits. The contrast class takes part
with many names, of which the best counts; `python -m vocabseg.benchmarks.vocabulary_bench` measures what that does.
"""

from collections.abc import Sequence

import numpy as np

from vocabseg.runtime.text.class_names import SEPARATOR

# Common words for things and surfaces, in no order that matters.
NOUNS = tuple(
    """
    person, face, hand, crowd, animal, dog, cat, horse, bird, fish, insect, car, truck, bus, train, bicycle, motorcycle,
    boat, airplane, road, sidewalk, railway, bridge, building, house, roof, wall, brick, tile, fence, door, window,
    stairs, floor, ceiling, room, furniture, table, chair, sofa, bed, shelf, cabinet, mirror, curtain, carpet, blanket,
    pillow, lamp, light, shadow, kitchen, oven, sink, refrigerator, bathtub, toilet, plate, bowl, cup, glass, bottle,
    cutlery, knife, food, bread, meat, cake, fruit, vegetable, drink, tree, bush, leaf, flower, plant, grass, field,
    forest, hill, mountain, rock, stone, gravel, sand, beach, mud, soil, snow, ice, river, lake, sea, water, sky, cloud,
    sun, fire, smoke, fog, clothing, shirt, trousers, dress, shoe, hat, bag, umbrella, jewellery, paper, book, poster,
    picture, text, sign, flag, traffic light, pole, street lamp, wire, pipe, metal, plastic, wood, cardboard, cloth,
    computer, screen, keyboard, telephone, camera, clock, machine, engine, wheel, tool, box, basket, toy, ball,
    musical instrument, sports equipment
    """.replace("\n", " ").split(",")
)
NOUNS = tuple(name.strip() for name in NOUNS)
# A contrast name whose text embedding has a higher cosine with that of a class name means the same and would take its
# pixels. On the demo model synonyms have 0.96 and more, different classes 0.92 and less.
SAME = 0.93


def candidates(own: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The model's `own` names and the common ones, without those of the classes."""
    taken = {name.lower() for name in classes}
    return tuple(name for name in dict.fromkeys((*split_names(own), *NOUNS)) if name.lower() not in taken)


def split_names(own: Sequence[str]) -> tuple[str, ...]:
    """Each of the names that classes have, once."""
    return tuple(dict.fromkeys(name.strip() for names in own for name in names.split(SEPARATOR)))


def different(names: Sequence[str], embeddings: np.ndarray, classes: np.ndarray) -> tuple[str, ...]:
    """Those of `names` that mean none of the classes, at least one of them.

    embeddings (n, D) of the names, classes (m, D) of all names of the classes, both of unit length; and of example
    images, divided by the highest cosine that any name reaches with them.
    """
    nearest = (embeddings @ classes.T).max(axis=1)
    kept = nearest <= max(SAME, float(nearest.min()))
    return tuple(name for name, keep in zip(names, kept, strict=True) if keep)
