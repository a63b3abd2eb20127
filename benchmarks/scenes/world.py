"""A procedural world: endless rendered scenes with exact labels, each determined by its seed.

Objects are a colour x a shape, 100 classes; their surface (plain, striped, dotted, checkered) varies within a class.
They lie on one or two of eight named backgrounds. The split is the paper's: 20 of the 100 pairs are unseen, two of each
colour and two of each shape, so every word of an unseen class is known from seen ones. Training scenes hold no object
of an unseen pair at all, which is stricter than the paper, where such pixels are there and ignored.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from vocabseg.benchmarks.scenes.shapes import OUTLINES, coverage
from vocabseg.benchmarks.scenes.textures import BACKGROUNDS, UPPER, noise, pattern

Array = np.ndarray
Generator = np.random.Generator

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (206, 36, 40),
    "orange": (244, 132, 22),
    "yellow": (246, 216, 38),
    "green": (30, 158, 62),
    "cyan": (40, 208, 216),
    "blue": (34, 74, 206),
    "purple": (122, 44, 166),
    "pink": (246, 132, 186),
    "white": (240, 240, 238),
    "black": (30, 30, 32),
}
SHAPES = tuple(OUTLINES)
SURFACES = ("plain", "striped", "dotted", "checkered")
OBJECTS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
CLASSES = (*OBJECTS, *BACKGROUNDS)
# Class = 10 x shape + colour. Two colours of every shape and two shapes of every colour are unseen.
SEEN = tuple((index % 10 + 3 * (index // 10)) % 5 != 0 for index in range(len(OBJECTS))) + (True,) * len(BACKGROUNDS)
SPLITS = ("train", "val", "test")
WORLD_VERSION = 1  # of the pictures: raise it with every change that moves a pixel
UNSEEN_SHARE = 0.35  # of the objects outside the training split: enough of each unseen class to measure it
VISIBLE = 0.75  # of an object's area that later objects and the frame leave


@dataclass(frozen=True)
class Segment:
    """An object or a background of a scene: its value in `Scene.segmentation`, its class, an object's surface."""

    id: int
    class_index: int
    surface: str | None


@dataclass(frozen=True)
class Scene:
    """image (H, W, 3) uint8 RGB; labels (H, W) uint8, index into CLASSES; segmentation (H, W) uint8, segment ids."""

    image: Array
    labels: Array
    segmentation: Array
    segments: tuple[Segment, ...]


def render_scene(
    seed: int, split: str = "test", index: int = 0, size: tuple[int, int] | None = None, objects: int | None = None
) -> Scene:
    """Draw scene `index` of a split; the same arguments give the same scene.

    size is (height, width), 96 pixels or more, by default drawn from 176 to 272; objects is their number, by default 2
    to 6. Raises ValueError for an unknown split or a smaller size.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of the world: use one of {', '.join(SPLITS)}")
    # Scenes of different splits never share random numbers.
    generator = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index]))
    drawn = _random_size(generator)
    h, w = drawn if size is None else size
    if min(h, w) < 96:
        raise ValueError(f"a scene of {h} x {w} pixels is too small: use 96 or more")
    unit = min(h, w) / 192
    canvas, segmentation, segments = backgrounds(generator, (h, w), unit)
    areas: dict[int, int] = {}
    count = int(generator.integers(2, 7)) if objects is None else objects
    for class_index in choose_classes(generator, split, count):
        _place(generator, canvas, segmentation, segments, areas, class_index, unit)
    labels = np.zeros((h, w), np.uint8)
    visible = []
    for segment in segments:
        where = segmentation == segment.id
        if where.any():
            labels[where] = segment.class_index
            visible.append(segment)
    return Scene(photograph(generator, canvas, unit), labels, segmentation, tuple(visible))


def _random_size(generator: Generator) -> tuple[int, int]:
    short = int(generator.integers(176, 209))
    long = int(short * generator.uniform(1.0, 1.4))
    return (short, long) if generator.random() < 0.7 else (long, short)


def choose_classes(generator: Generator, split: str, count: int) -> list[int]:
    flags = np.array(SEEN[: len(OBJECTS)])
    seen, unseen = np.flatnonzero(flags), np.flatnonzero(~flags)
    chosen: list[int] = []
    while len(chosen) < count:
        pool = unseen if split != "train" and generator.random() < UNSEEN_SHARE else seen
        candidate = int(generator.choice(pool))
        if candidate not in chosen:
            chosen.append(candidate)
    return chosen


def backgrounds(generator: Generator, size: tuple[int, int], unit: float) -> tuple[Array, Array, list[Segment]]:
    names = list(BACKGROUNDS)
    h, w = size
    lower = [name for name in names if name not in UPPER]
    segmentation = np.ones(size, np.uint8)
    if generator.random() < 0.4:
        name = str(generator.choice(names))
        canvas = BACKGROUNDS[name](generator, size, unit).astype(np.float32)
        return canvas, segmentation, [Segment(1, CLASSES.index(name), None)]
    above, below = str(generator.choice(UPPER)), str(generator.choice(lower))
    line = h * generator.uniform(0.3, 0.65) + np.arange(w) * generator.uniform(-0.12, 0.12)
    if above != "brick wall" and below != "water":
        line = line + noise(generator, (1, w), 1, 60 * unit)[0] * 6 * unit
    share = np.clip(np.arange(h)[:, None] - line[None] + 0.5, 0, 1).astype(np.float32)
    upper, ground = BACKGROUNDS[above](generator, size, unit), BACKGROUNDS[below](generator, size, unit)
    segmentation[share >= 0.5] = 2
    mixed = upper * (1 - share[..., None]) + ground * share[..., None]
    segments = [Segment(1, CLASSES.index(above), None), Segment(2, CLASSES.index(below), None)]
    return mixed.astype(np.float32), segmentation, segments


def _place(
    generator: Generator,
    canvas: Array,
    segmentation: Array,
    segments: list[Segment],
    areas: dict[int, int],
    class_index: int,
    unit: float,
) -> None:
    """Draw one object where it does not hide too much of the others; after 16 tries, none."""
    h, w = segmentation.shape
    shape, surface = SHAPES[class_index // 10], str(generator.choice(SURFACES, p=(0.4, 0.2, 0.2, 0.2)))
    for _ in range(16):
        radius = unit * float(generator.uniform(27, 54))
        x, y = float(generator.uniform(0.1, 0.9) * w), float(generator.uniform(0.1, 0.9) * h)
        angle = float(generator.normal(0, 0.35))
        stretch = float(np.exp(generator.uniform(-0.12, 0.12)))
        # The object is drawn in a window of its own, which may reach over the frame.
        reach = math.ceil(1.4 * radius)
        left, top = int(x) - reach, int(y) - reach
        centre = (x - left, y - top)
        window = coverage(shape, centre, radius, stretch, angle, (2 * reach + 1, 2 * reach + 1))
        rows = slice(max(top, 0), min(top + 2 * reach + 1, h))
        columns = slice(max(left, 0), min(left + 2 * reach + 1, w))
        inner = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        inside = window[inner] >= 0.5
        area = int((window >= 0.5).sum())
        if inside.sum() < 0.8 * area:
            continue
        visible = np.bincount(segmentation.ravel(), minlength=256)
        hidden = np.bincount(segmentation[rows, columns][inside], minlength=256)
        if all(visible[id_] - hidden[id_] >= VISIBLE * whole for id_, whole in areas.items()):
            break
    else:
        return
    id_ = max(segment.id for segment in segments) + 1
    segments.append(Segment(id_, class_index, surface))
    areas[id_] = area
    segmentation[rows, columns][inside] = id_
    view = canvas[rows, columns]
    shadow(generator, view, window[inner], unit)
    colour = paint(generator, list(COLOURS)[class_index % 10], surface, window.shape, centre, angle, radius)[inner]
    share = window[inner][..., None]
    view[:] = view * (1 - share) + colour * share


def shadow(generator: Generator, canvas: Array, cover: Array, unit: float) -> None:
    reach = max(1, round(unit * float(generator.uniform(1.5, 5))))
    moved = np.zeros_like(cover)
    moved[reach:, reach:] = cover[:-reach, :-reach]
    canvas *= 1 - np.float32(generator.uniform(0.2, 0.45)) * cv2.GaussianBlur(moved, (0, 0), 2.2 * unit)[..., None]


def paint(
    generator: Generator,
    name: str,
    surface: str,
    size: tuple[int, int],
    centre: tuple[float, float],
    angle: float,
    radius: float,
) -> Array:
    """(H, W, 3): the object's colour with its pattern in a second tone of the same colour, lit from one side."""
    colour = np.clip(np.array(COLOURS[name], np.float32) + generator.normal(0, 7, 3), 16, 250)
    second = colour * 0.62 if name != "black" else colour + 62
    turned = angle + generator.uniform(0, math.pi)
    period = radius * generator.uniform(0.42, 0.62) * (0.72 if surface == "checkered" else 1)
    tones = np.where(pattern(surface, size, centre, turned, period)[..., None], second, colour)
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    light = generator.uniform(0, 2 * math.pi)
    slope = ((columns - centre[0]) * math.cos(light) + (rows - centre[1]) * math.sin(light)) / radius
    return (tones * (1 + generator.uniform(0.02, 0.12) * np.clip(slope, -1.2, 1.2))[..., None]).astype(np.float32)


def photograph(generator: Generator, canvas: Array, unit: float) -> Array:
    """Light that changes across the scene, a lens that blurs a little, a sensor with noise."""
    h, w = canvas.shape[:2]
    rows, columns = np.mgrid[:h, :w].astype(np.float32)
    light = generator.uniform(0, 2 * math.pi)
    slope = (columns / w - 0.5) * math.cos(light) + (rows / h - 0.5) * math.sin(light)
    gain = generator.uniform(0.88, 1.08) + generator.uniform(0, 0.22) * slope
    image = canvas * gain.astype(np.float32)[..., None]
    blur = generator.uniform(0, 0.9) * unit
    if blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    noisy = image + np.float32(generator.uniform(0, 6)) * generator.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
