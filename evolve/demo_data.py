"""The demo's data, made on the spot as image folders: scikit-learn's handwritten digits, and shapes drawn by Pillow."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

HELD_OUT = 5  # one image in so many is for testing alone
SHAPES_PER_CLASS = 300
SHAPE_PIXELS = 24

Point = tuple[float, float]


def write_digits(folder: Path, label_of: Callable[[int], str], rng: np.random.Generator) -> Path:
    """Write the 1,797 digits as an image folder with a held-out fifth; `label_of` names the class of a digit."""
    data = load_digits()
    order = rng.permutation(len(data.target))
    images = [Image.fromarray((data.images[index] * (255 / 16)).astype(np.uint8)) for index in order]
    return _write(folder, images, [label_of(int(data.target[index])) for index in order])


def write_shapes(folder: Path, rng: np.random.Generator) -> Path:
    """Draw filled shapes of random place, size, tilt and colour on a random ground, with a held-out fifth."""
    labels = [str(label) for label in rng.permutation(list(SHAPES) * SHAPES_PER_CLASS)]
    return _write(folder, [_draw(SHAPES[label], rng) for label in labels], labels)


def _write(folder: Path, images: Sequence[Image.Image], labels: Sequence[str]) -> Path:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / ("test" if index % HELD_OUT == 0 else "train") / label
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index:04d}.png")
    return folder


def _polygon(corners: int, inner: float = 1.0) -> list[Point]:
    """Return corners on a unit circle; with `inner` below 1 every other one lies further in, as in a star."""
    radii = [1.0 if corner % 2 == 0 else inner for corner in range(corners)]
    turns = [2 * math.pi * corner / corners for corner in range(corners)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in zip(radii, turns, strict=True)]


SHAPES: dict[str, list[Point]] = {
    "circle": _polygon(40),
    "cross": _polygon(4, inner=0.2),
    "square": _polygon(4),
    "star": _polygon(10, inner=0.4),
    "triangle": _polygon(3),
}


def _draw(shape: Sequence[Point], rng: np.random.Generator) -> Image.Image:
    ground, colour = rng.integers(0, 120, 3), rng.integers(150, 255, 3)
    radius, turn = rng.uniform(6, 10), rng.uniform(-0.3, 0.3)
    x, y = rng.uniform(radius, SHAPE_PIXELS - radius, 2)
    corners = [
        (x + radius * (a * math.cos(turn) - b * math.sin(turn)), y + radius * (a * math.sin(turn) + b * math.cos(turn)))
        for a, b in shape
    ]
    image = Image.new("RGB", (SHAPE_PIXELS, SHAPE_PIXELS), tuple(map(int, ground)))
    ImageDraw.Draw(image).polygon(corners, fill=tuple(map(int, colour)))
    return image
