"""The colours of classes: one for each index, the same in every picture, label map, legend and report."""

from functools import cache

import numpy as np

Colour = tuple[int, int, int]  # RGB, 0..255

# The first seven are Okabe and Ito's (jfly.uni-koeln.de/color); each further one is the colour of a coarse RGB grid
# farthest from those before it in OKLab, for normal, protanopic and deuteranopic vision (Machado et al. 2009).
PALETTE = (
    "0072b2 e69f00 009e73 cc79a7 d55e00 56b4e9 f0e442 961e4b 00ffe1 0000ff 8778ff 00d287 "
    "964b00 c31e96 691ec3 5ae1ff a5f096 e10fd2 f05a69 960087 a54b5a ff78d2 f0c34b 3c5aff"
)
# Classes beyond the palette get colours that are far apart up to the last of these counts; all further ones differ.
CHOSEN = (256, 1024)
# Of the colours that are left by then, as much difference as there is goes to normal vision.
COLOUR_BLIND_WEIGHT = 3.0
# Lightness and least chroma in OKLab: neither black nor white nor grey, which a tinted photo has anyway.
LIGHTNESS, CHROMA = (0.35, 0.95), 0.05
LEVELS = 16  # of each channel among which they are chosen

# sRGB -> linear -> OKLab (bottosson.github.io/posts/oklab)
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.793617785, -0.0040720468],
        [1.9779984951, -2.428592205, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.808675766],
    ]
)
# Machado et al. 2009, severity 1
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)


def class_colours(count: int) -> np.ndarray:
    """Colours (count, 3) uint8 RGB of the classes, all different; a class's colour depends on its index alone."""
    first = _far_apart(next((size for size in (len(PALETTE.split()), *CHOSEN) if count <= size), CHOSEN[-1]))
    if count <= len(first):
        return first[:count].copy()
    # An odd factor makes a permutation of the 2^24 colours, of which those that are taken are left out.
    mixed = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779) & np.uint32(0xFFFFFF)
    mixed = mixed[~np.isin(mixed, first.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))]
    further = np.stack([mixed >> 16, mixed >> 8 & 255, mixed & 255], axis=1).astype(np.uint8)
    return np.concatenate([first, further])[:count]


@cache
def _far_apart(count: int) -> np.ndarray:
    """(count, 3) uint8: the palette, and then always the colour of a grid that is farthest from those before it."""
    colours = [np.frombuffer(bytes.fromhex(colour), np.uint8) for colour in PALETTE.split()]
    if count > len(colours):
        levels = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
        lab = _perceived(grid, np.eye(3))
        bright = (lab[:, 0] > LIGHTNESS[0]) & (lab[:, 0] < LIGHTNESS[1])
        grid = grid[bright & (np.hypot(lab[:, 1], lab[:, 2]) > CHROMA)]
        eyes = ((np.eye(3), 1.0), (PROTANOPIA, COLOUR_BLIND_WEIGHT), (DEUTERANOPIA, COLOUR_BLIND_WEIGHT))
        seen = [weight * _perceived(grid, eye) for eye, weight in eyes]
        taken = [weight * _perceived(np.stack(colours), eye) for eye, weight in eyes]
        pairs = zip(seen, taken, strict=True)
        nearest = np.min([np.linalg.norm(a[:, None] - b, axis=2).min(axis=1) for a, b in pairs], axis=0)
        while len(colours) < count:
            chosen = int(nearest.argmax())
            colours.append(grid[chosen])
            for points in seen:
                np.minimum(nearest, np.linalg.norm(points - points[chosen], axis=1), out=nearest)
    table = np.stack(colours)
    table.flags.writeable = False
    return table


def _perceived(colours: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """OKLab (n, 3) of sRGB colours (n, 3) uint8, as eyes see them for which linear RGB is `eyes` times it."""
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    lab: np.ndarray = np.cbrt(np.clip(linear @ eyes.T, 0, 1) @ TO_CONES.T) @ TO_LAB.T
    return lab
