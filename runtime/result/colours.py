"""The colours of classes: one for each index, the same in every picture, label map, legend and report."""

from functools import cache

import numpy as np

Colour = tuple[int, int, int]  # RGB, 0..255

# The first seven are Okabe and Ito's (jfly.uni-koeln.de/color); each further one is the colour of a coarse RGB grid
# farthest from those before it in OKLab, for normal, protanopic and deuteranopic vision (Machado et al. 2009).
PALETTE = (
    "0072b2 e69f00 009e73 cc79a7 d55e00 56b4e9 f0e442 961e4b 00ffe1 0000ff 8778ff 00d287 "
    "964b00 c31e96 691ec3 5ae1ff a5f096 e10fd2 f05a69 960087 a54b5a ff78d2 f0c34b 3c5aff "
    "224422 443366 ddbbdd 2211aa 99aa88 ffddbb 556633 662200 8877aa aa00dd 888833 cc99ff 77dd00 cc0000 005577 ff0088 "
    "ff8866 660088 5599aa cc66dd 007777 aaffff 99ccbb 3344aa 88bb33 775588 9955bb 33bbaa ddbb99 1188ee 664455 44ff11 "
    "11aa33 6666cc 661155 aa7755 aa99cc ff33ff 4400dd dd99aa aabbff 008833 6699ff ff3300 773377 cc8844 cc2266 bb5599 "
    "8844ee 00ddcc 11ee88 991100 554400 ff44bb 558877 aacc66 ccddaa 99ff66 554488 ccffbb 771133 8833bb ddff33 ff7799 "
    "aa88ee 6622ff ffbbff 442299 aa7788 3388bb ffee99 bb44dd ffaabb 66aa77 cc4444 006622 5544cc 99eecc 00ccee cc6677 "
    "ffaa55 ee5599 5555aa 225544 ee7700 bbaa55 aa66ee 44bb66 0000cc 88bb77 553344 227744 dd3399 773333 8800ee 884455 "
    "aa0066 6688dd ff99ff aadddd bb0044 0055dd cccc00 ccdd77 ff2255 ff6644 668800 772299 8866dd bbccee 55cc11 aa77cc "
    "dd44ee 447799 775544 ccbb44 ee66ff 4400bb 887755 996688 bbbb88 aa33bb 005522 993399 66eeaa ee99dd 88bbdd 555577 "
    "889911 8899bb 77dd77 336677 aa9955 bb00ff 00aa99 3399dd bb8888 aa6666 cc33bb 00bb00 552277 00dd66 aa3333 aa88aa "
    "6666aa eecc99 ccaacc aa7700 dd7777 4477cc 445511 996633 8877cc eeccee 2266cc bbff88 118866 772255 8899dd 33eeee "
    "33aacc 448899 cc9988 99eeff 88ddaa 993377 889966 226655 2233cc 33ee55 ff88bb cc55bb ff9999 0033aa dd77dd 665522 "
    "77ffaa 99ccdd 0055aa 667744 aa4477 998866 00eecc 77cc77 004499 bbdd00 ee9955 77ffee 55ff77 bbee66 446600 776688 "
    "22ccbb 99aacc 9988cc 99ffcc bb5533 ddaaee 770066 bbeedd 77bb99 77ccaa aa4499 771111 cccc77 3344ee eeaa88 7755aa "
    "0099bb 77aa99 9966aa dd5555 44aa55 9955ee 003388 6677ff dd3366 77ee66 66bbbb ccee00 eedd99 66aa22 aaddbb ddeeaa "
    "bbffdd 334488 ee33bb 00bb88 dd2233 ee88ff 774466 99aaee"
)
# Those after the first 24 are written down because finding them takes longer than a small model takes for an image.
# Classes beyond the palette get colours that are far apart up to this count; all further ones differ.
CHOSEN = 1024
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
    written = len(PALETTE.split())
    first = _far_apart(written if count <= written else CHOSEN)
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
