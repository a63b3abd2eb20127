"""Outlines of the procedural world's objects: named shapes as polygons, and their exact coverage of pixels."""

import math
from collections.abc import Callable

import cv2
import numpy as np

Array = np.ndarray
SUBPIXELS = 4  # per pixel and side: coverage is a multiple of 1/16


def coverage(
    shape: str, centre: tuple[float, float], radius: float, stretch: float, angle: float, size: tuple[int, int]
) -> Array:
    """How much of each pixel a shape covers: (H, W) float32, 0..1.

    centre is (x, y) and radius in pixels, stretch widens along the shape's own x axis, angle turns it, in radians.
    """
    h, w = size
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos * stretch, -sin / stretch], [sin * stretch, cos / stretch]])
    contours = [contour @ turn.T * radius + np.array(centre) for contour in OUTLINES[shape]]
    canvas = np.zeros((h * SUBPIXELS, w * SUBPIXELS), np.uint8)
    cv2.fillPoly(canvas, [np.rint(contour * SUBPIXELS).astype(np.int32) for contour in contours], 1)
    blocks = canvas.reshape(h, SUBPIXELS, w, SUBPIXELS).sum(axis=(1, 3), dtype=np.int32)
    return (blocks / SUBPIXELS**2).astype(np.float32)


def _around(radius: Callable[[Array], Array | float], points: int = 96) -> Array:
    angle = np.arange(points) * (2 * math.pi / points)
    distance = radius(angle) * np.ones(points)
    return np.stack([distance * np.sin(angle), -distance * np.cos(angle)], axis=1)


def _regular(corners: int) -> Array:
    return _around(lambda angle: 1.0, corners)


def _star() -> Array:
    points = _around(lambda angle: 1.0, 10)
    points[1::2] *= 0.42
    return points * 1.08


def _heart() -> Array:
    t = np.arange(96) * (2 * math.pi / 96)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2], axis=1) / 16.5


def _crescent() -> Array:
    """A disc of radius 1 less a disc of radius 0.8 that is shifted to the right."""
    shift, inner = 0.48, 0.80
    x = (1 + shift**2 - inner**2) / (2 * shift)  # where the two circles meet
    outer_angle, inner_angle = math.acos(x), math.acos((x - shift) / inner)
    outer = np.linspace(outer_angle, 2 * math.pi - outer_angle, 64)
    hollow = np.linspace(2 * math.pi - inner_angle, inner_angle, 48)
    points = np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], axis=1),
            np.stack([shift + inner * np.cos(hollow), inner * np.sin(hollow)], axis=1),
        ]
    )
    points[:, 0] += 0.2
    return points * 1.05


_CROSS = np.array(
    [[-1, 3], [1, 3], [1, 1], [3, 1], [3, -1], [1, -1], [1, -3], [-1, -3], [-1, -1], [-3, -1], [-3, 1], [-1, 1]]
)
_ARROW = np.array([[0, -1.0], [0.85, 0.0], [0.34, 0.0], [0.34, 1.0], [-0.34, 1.0], [-0.34, 0.0], [-0.85, 0.0]])

# Contours around (0, 0), y down, about 1 in radius; the second contour of the ring is its hole.
OUTLINES: dict[str, list[Array]] = {
    "circle": [_regular(96) * 0.92],
    "square": [np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * 0.82],
    "triangle": [_regular(3) * 1.12 + [0, 0.15]],
    "star": [_star()],
    "ring": [_regular(96), _regular(96)[::-1] * 0.52],
    "cross": [_CROSS / 3.0],
    "heart": [_heart()],
    "crescent": [_crescent()],
    "arrow": [_ARROW * 1.05],
    "flower": [_around(lambda angle: 0.74 + 0.30 * np.cos(5 * angle))],
}
