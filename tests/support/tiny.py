"""A tiny root, configurations for it, and a small labelled data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from evolve.config import EvolveConfig
from evolve.task import Task, load_task
from models.names import TaskName

TINY_ROOT = "random:embed_dim=16,depth=2,num_heads=2,patch_size=8,image_size=16"
TINY_CONFIG = EvolveConfig(
    generations=1,
    children_per_generation=2,
    epochs=2,
    batch_size=8,
    validations=2,
    learning_rate=0.05,
    threads=1,
)
HALVED = replace(
    TINY_CONFIG,
    generations=3,
    children_per_generation=1,
    first_children=4,
    halving=True,
    halving_from=2,
    validations=4,
    epochs=4.0,
)
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def draw_image_folder(folder: Path, *, images_per_class: int = 10, seed: int = 0) -> Path:
    """Draw a small labelled data set, one folder a class: a coloured box on grey noise."""
    rng = np.random.default_rng(seed)
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for index in range(images_per_class):
            image = Image.fromarray(rng.integers(90, 160, (20, 20, 3), dtype=np.uint8))
            left, top = (int(value) for value in rng.integers(0, 8, 2))
            ImageDraw.Draw(image).rectangle((left, top, left + 11, top + 11), fill=colour)
            image.save(folder / label / f"{index}.png")
    return folder


def load_toy_task(name: str, folder: Path, cache_folder: Path) -> Task:
    return load_task(TaskName(name), folder, seed=0, cache_folder=cache_folder)
