"""Surfaces of the procedural world: named background textures, and what is painted on objects.

All colours are RGB in 0..255, float32. `unit` is the length that texture details scale with: the shorter side / 192.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

Array = np.ndarray
Generator = np.random.Generator


def noise(generator: Generator, size: tuple[int, int], cell_h: float, cell_w: float | None = None) -> Array:
    """Smooth noise (H, W) float32 in about -1..1 whose features are some cell_h x cell_w pixels large."""
    h, w = size
    cell_w = cell_h if cell_w is None else cell_w
    grid = generator.uniform(-1, 1, (math.ceil(h / max(cell_h, 1)) + 2, math.ceil(w / max(cell_w, 1)) + 2))
    grown = cv2.resize(
        grid.astype(np.float32), None, fx=max(cell_w, 1), fy=max(cell_h, 1), interpolation=cv2.INTER_CUBIC
    )
    return grown[:h, :w]


def _blend(low: tuple[float, ...], high: tuple[float, ...], share: Array) -> Array:
    share = np.clip(share, 0, 1).astype(np.float32)[..., None]
    return np.array(low, np.float32) + (np.array(high, np.float32) - np.array(low, np.float32)) * share


def _grid(size: tuple[int, int]) -> tuple[Array, Array]:
    return np.arange(size[0], dtype=np.float32)[:, None], np.arange(size[1], dtype=np.float32)[None]


def grass(generator: Generator, size: tuple[int, int], unit: float) -> Array:
    blades = noise(generator, size, 7 * unit, 1.2 * unit) * 0.4 + noise(generator, size, 30 * unit) * 0.25
    return _blend((52, 82, 34), (138, 166, 84), 0.5 + blades)


def sand(generator: Generator, size: tuple[int, int], unit: float) -> Array:
    rows, columns = _grid(size)
    bend = noise(generator, size, 40 * unit) * 9 * unit
    ripples = np.sin((rows + bend + 0.15 * columns) / (3.2 * unit)) * 0.16
    grain = 0.16 * generator.standard_normal(size, np.float32)
    return _blend((196, 164, 112), (236, 212, 164), 0.5 + ripples + grain)


def water(generator: Generator, size: tuple[int, int], unit: float) -> Array:
    rows, _ = _grid(size)
    bend = noise(generator, size, 14 * unit, 30 * unit) * 6 * unit
    waves = np.sin((rows + bend) / (2.4 * unit))
    glints = np.clip(noise(generator, size, 2.2 * unit, 9 * unit) - 0.45, 0, 1) * 1.2
    return _blend((22, 84, 118), (126, 186, 206), 0.35 + waves * 0.16 + glints)


def brick_wall(generator: Generator, size: tuple[int, int], unit: float) -> Array:
    rows, columns = _grid(size)
    height, width, joint = 13 * unit, 30 * unit, 1.8 * unit
    course = np.floor(rows / height)
    along = columns + (course % 2) * width / 2
    shades = generator.uniform(-1, 1, 4096)
    number = (course * 61 + np.floor(along / width)).astype(np.int64) % 4096
    tone = 0.5 + 0.35 * shades[number] + 0.12 * generator.standard_normal(size, np.float32)
    mortar = (rows % height < joint) | (along % width < joint)
    return np.where(
        mortar[..., None], np.array((184, 172, 160), np.float32), _blend((112, 56, 44), (164, 88, 66), tone)
    )


def night_sky(generator: Generator, size: tuple[int, int], unit: float) -> Array:
    rows, _ = _grid(size)
    sky = _blend((20, 24, 66), (62, 62, 122), rows / max(size[0], 1) + noise(generator, size, 50 * unit) * 0.2)
    for _ in range(int(size[0] * size[1] / (330 * unit**2))):
        y, x = generator.uniform(0, size[0]), generator.uniform(0, size[1])
        bright, radius = float(generator.uniform(0.35, 1)), max(1, round(float(generator.uniform(0.3, 1.2)) * unit))
        colour = tuple(float(value) for value in np.array((250, 246, 226), np.float32) * bright)
        cv2.rectangle(sky, (int(x), int(y)), (int(x) + radius - 1, int(y) + radius - 1), colour, -1)
    return sky


def cloudy_sky(generator: Generator, size: tuple[int, int], unit: float) -> Array:
    puffs = noise(generator, size, 44 * unit, 70 * unit) * 0.9 + noise(generator, size, 16 * unit, 26 * unit) * 0.35
    return _blend((124, 174, 226), (240, 243, 247), 0.4 + puffs)


def wooden_floor(generator: Generator, size: tuple[int, int], unit: float) -> Array:
    rows, columns = _grid(size)
    plank = 24 * unit
    number = np.floor(rows / plank).astype(np.int64)
    shades = generator.uniform(-1, 1, 512)[number % 512]
    bend = noise(generator, size, 10 * unit, 60 * unit) * 5 * unit
    grain = np.sin((rows + bend) / (1.7 * unit)) * 0.16 + noise(generator, size, 2 * unit, 24 * unit) * 0.2
    wood = _blend((116, 74, 42), (198, 142, 92), 0.5 + 0.28 * shades + grain)
    ends = generator.uniform(0, 1, 512)[number % 512] * 110 * unit
    seam = (rows % plank < 1.3 * unit) | (np.abs((columns - ends) % (110 * unit)) < 1.2 * unit)
    return np.where(seam[..., None], np.array((64, 40, 24), np.float32), wood)


def gravel(generator: Generator, size: tuple[int, int], unit: float) -> Array:
    stones = noise(generator, size, 3.2 * unit) * 0.4 + noise(generator, size, 6 * unit) * 0.25
    return _blend((74, 72, 70), (188, 184, 180), 0.5 + stones)


BACKGROUNDS: dict[str, Callable[[Generator, tuple[int, int], float], Array]] = {
    "grass": grass,
    "sand": sand,
    "water": water,
    "brick wall": brick_wall,
    "night sky": night_sky,
    "cloudy sky": cloudy_sky,
    "wooden floor": wooden_floor,
    "gravel": gravel,
}
UPPER = ("brick wall", "night sky", "cloudy sky")  # above a horizon; the others lie below one


def pattern(surface: str, size: tuple[int, int], centre: tuple[float, float], angle: float, period: float) -> Array:
    """Where an object's second tone stands: (H, W) bool; `surface` is plain, striped, dotted or checkered."""
    rows, columns = _grid(size)
    x, y = columns - np.float32(centre[0]), rows - np.float32(centre[1])
    u = (np.cos(angle) * x + np.sin(angle) * y) / period
    v = (np.cos(angle) * y - np.sin(angle) * x) / period
    if surface == "striped":
        return u - np.floor(u) < 0.42
    if surface == "dotted":
        row = np.floor(v)
        shifted = u + 0.5 * (row % 2)
        return (shifted - np.floor(shifted) - 0.5) ** 2 + (v - row - 0.5) ** 2 < 0.085
    if surface == "checkered":
        return (np.floor(u) + np.floor(v)) % 2 == 0
    return np.zeros(size, bool)
