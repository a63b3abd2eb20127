"""Scenes of the procedural world in motion: objects glide over a still background, before a still camera."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vocabseg.benchmarks.scenes.shapes import coverage
from vocabseg.benchmarks.scenes.world import (
    COLOURS,
    SHAPES,
    SURFACES,
    Array,
    Scene,
    Segment,
    backgrounds,
    choose_classes,
    paint,
    photograph,
    shadow,
)


@dataclass
class Mover:
    """An object as it is drawn: its cover and colours in a window, where that is, and its pixels per frame."""

    segment: Segment
    cover: Array
    colours: Array
    shadow_seed: int
    place: Array
    speed: Array


def moving_scenes(
    seed: int, index: int, frames: int, size: tuple[int, int] = (192, 256), objects: int = 3, moving: int = 2,
    sensor_noise: float = 0.0,
) -> Iterator[Scene]:  # fmt: skip
    """Draw the frames of scene `index` of the test split; the same arguments give the same ones.

    `moving` of the `objects` go 1 to 4 pixels a frame and turn back at the frame's edge. The grain of the first frame
    stays; `sensor_noise` is the standard deviation of noise that is new in each frame, of 255.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, 3, index]))
    (height, width), unit = size, min(size) / 192
    canvas, still, segments = backgrounds(generator, size, unit)
    movers = []
    for number, class_index in enumerate(choose_classes(generator, "test", objects)):
        segment = Segment(len(segments) + 1 + number, class_index, str(generator.choice(SURFACES)))
        movers.append(_mover(generator, segment, size, unit, number < moving))
    light, noise = int(generator.integers(2**32)), np.random.default_rng([seed, 4, index])
    for _ in range(frames):
        picture, segmentation = canvas.copy(), still.copy()
        for mover in movers:
            _draw(mover, picture, segmentation, unit)
        image = photograph(np.random.default_rng(light), picture, unit)
        if sensor_noise:
            noisy = image + np.float32(sensor_noise) * noise.standard_normal(image.shape, np.float32)
            image = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        everything = [*segments, *(mover.segment for mover in movers)]
        labels = np.zeros(256, np.uint8)
        labels[[segment.id for segment in everything]] = [segment.class_index for segment in everything]
        seen = np.unique(segmentation)
        yield Scene(image, labels[segmentation], segmentation, tuple(one for one in everything if one.id in seen))
        for mover in movers:
            beyond = (mover.place < 0) & (mover.speed < 0) | (mover.place >= (width, height)) & (mover.speed > 0)
            mover.speed[beyond] *= -1
            mover.place += mover.speed


def _mover(generator: np.random.Generator, segment: Segment, size: tuple[int, int], unit: float, moves: bool) -> Mover:
    radius, angle = unit * float(generator.uniform(24, 40)), float(generator.normal(0, 0.35))
    reach = math.ceil(1.4 * radius)
    window, centre = (2 * reach + 1, 2 * reach + 1), (float(reach), float(reach))
    cover = coverage(SHAPES[segment.class_index // 10], centre, radius, 1.0, angle, window)
    name = list(COLOURS)[segment.class_index % 10]
    colours = paint(generator, name, str(segment.surface), window, centre, angle, radius)
    place = generator.integers((0, 0), (size[1], size[0]))
    speed = generator.integers(1, 5, 2) * generator.choice((-1, 1), 2) * moves
    return Mover(segment, cover, colours, int(generator.integers(2**32)), place, speed)


def _draw(mover: Mover, picture: Array, segmentation: Array, unit: float) -> None:
    (height, width), side = segmentation.shape, len(mover.cover)
    left, top = (mover.place - side // 2).tolist()
    rows, columns = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
    inner = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    view, share = picture[rows, columns], mover.cover[inner][..., None]
    # Drawn in its whole window, so that it does not change where the frame cuts the window.
    dimmed = np.ones((*mover.cover.shape, 1), np.float32)
    shadow(np.random.default_rng(mover.shadow_seed), dimmed, mover.cover, unit)
    view *= dimmed[inner]
    view[:] = view * (1 - share) + mover.colours[inner] * share
    segmentation[rows, columns][mover.cover[inner] >= 0.5] = mover.segment.id
