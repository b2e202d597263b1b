"""Draw the images of this folder: ten simple shapes, grey on dark, 28 x 28 pixels.

python draw.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZE = 28
#: Points a pixel's side, of which the share inside the shape is the pixel's grey.
FINENESS = 4
#: Images of each shape, and the seed of their variations.
SPLITS = {"train": (40, 1), "eval": (20, 2)}

# Corners, x to the right and y downwards, from -1 to 1.
POLYGONS = {
    "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)],
    "cross": [
        *[(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)],
        *[(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    ],
    "house": [(-1, -0.1), (0, -1), (1, -0.1), (0.75, -0.1), (0.75, 0.9), (-0.75, 0.9), (-0.75, -0.1)],
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "star": [
        ((1 - 0.58 * (i % 2)) * np.sin(i * np.pi / 5), -(1 - 0.58 * (i % 2)) * np.cos(i * np.pi / 5))
        for i in range(10)
    ],
    "triangle": [(0, -0.9), (0.95, 0.75), (-0.95, 0.75)],
}
LABELS = sorted([*POLYGONS, "circle", "heart", "moon", "ring"])


def is_inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points lie in a shape."""
    radius = np.hypot(x, y)
    if shape == "circle":
        return radius < 0.95
    if shape == "ring":
        return (radius < 1) & (radius > 0.55)
    if shape == "moon":
        return (radius < 1) & (np.hypot(x - 0.5, y + 0.1) > 0.8)
    if shape == "heart":
        a, b = 1.15 * x, -1.15 * y + 0.1
        return (a**2 + b**2 - 1) ** 3 < a**2 * b**3
    return _is_inside_polygon(POLYGONS[shape], x, y)


def _is_inside_polygon(corners: list[tuple[float, float]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A ray to the right of an inner point crosses an odd number of edges."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def draw(shape: str, random: np.random.Generator) -> np.ndarray:
    """One image, uint8 ``[28, 28]``: the shape turned, stretched and moved a little, and some specks."""
    points = (np.arange(SIZE * FINENESS) + 0.5) / FINENESS  # in pixels
    center = SIZE / 2 + random.uniform(-3, 3, 2)
    angle = np.deg2rad(random.uniform(-20, 20))
    width, height = random.uniform(6.5, 11) * random.uniform(0.8, 1.2, 2)
    right, down = points[None, :] - center[0], points[:, None] - center[1]
    x = (right * np.cos(angle) + down * np.sin(angle)) / width
    y = (down * np.cos(angle) - right * np.sin(angle)) / height
    inside = is_inside(shape, x, y).reshape(SIZE, FINENESS, SIZE, FINENESS)
    ground, ink = random.integers(0, 70), random.integers(140, 256)
    image = ground + (ink - ground) * inside.mean(axis=(1, 3))
    for row, column in random.integers(0, SIZE, (random.integers(0, 12), 2)):
        image[row, column] = random.integers(0, 256)
    return np.rint(image).astype(np.uint8)


def draw_split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images of each shape: uint8 ``[N, 28, 28]``, and their labels ``[N]``."""
    random = np.random.default_rng(seed)
    labels = np.repeat(LABELS, count)
    return np.stack([draw(str(label), random) for label in labels]), labels


if __name__ == "__main__":
    for name, (count, seed) in SPLITS.items():
        images, labels = draw_split(count, seed)
        np.savez_compressed(Path(__file__).with_name(f"{name}.npz"), images=images, labels=labels)
        print(f"{name}.npz  {len(images)} images")
