"""The stream of tasks and what each may cost."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evolve.config import EvolveConfig
from evolve.demo_data import write_digits, write_shapes
from tests.shared_data import shared_folder

FAMILIES = ("finetune", "freeze:6", "adapters:32", "probe")
ROOT = "weights/vit_tiny_patch16_224.safetensors"
ROOT_SCALE = (0.5, 0.5, 0.5)  # mean, and standard deviation too, of the pixels that these weights were trained with
SMOKE_ROOT = "random:embed_dim=32,depth=3,num_heads=2,patch_size=8,image_size=32"
# Training images of a task's whole evolution, by the image size where it starts. At about 500, 200 and 86 images
# a second with all blocks trained (2 cores), a task and its four baseline families take some 8 minutes.
IMAGES = {32: 60_000, 64: 24_000, 96: 12_000}
CANDIDATES = (3, 4)  # generations, and candidates in each


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """A task of the stream. `image_sizes` in pixels: where evolution starts, and the grid of the baselines."""

    name: str
    image_size: int
    baseline_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """All that a run of the benchmark does."""

    tasks: tuple[TaskPlan, ...]
    data_folder: Path
    root: str
    budget: float  # times `IMAGES`
    families: tuple[str, ...] = FAMILIES

    def config(self, task: TaskPlan, seed: int) -> EvolveConfig:
        generations, children = CANDIDATES
        images = max(64, int(self.budget * IMAGES[task.image_size] / (generations * children)))
        return EvolveConfig(
            generations=generations,
            children_per_generation=children,
            epochs=1e9,  # the budget is in images
            max_images=images,
            image_size=task.image_size,
            depth_jump=True,
            learning_rate=0.02,
            seed=seed,
        )


def _at(size: int, *names: str) -> tuple[TaskPlan, ...]:
    grid = (size,) if size == 32 else (size - 32, size)
    return tuple(TaskPlan(name, size, grid) for name in names)


STREAM = (
    *_at(32, "devanagari", "bangla", "hoda_farsi"),
    *_at(64, "sign_digits", "cifar10"),
    *_at(32, "kannada_mnist", "fashion_mnist", "gtsrb"),
    *_at(64, "pacs_sketch", "pacs_cartoon", "flowers5"),
    *_at(32, "notmnist", "pneumonia_mnist"),
    *_at(96, "magnetic_tile", "hymenoptera"),
)


def real_plan(budget: float) -> StreamPlan:
    """Return the plan on the shared data; its files are looked for when they are needed."""
    folder = shared_folder()
    return StreamPlan(STREAM, folder / "datasets", str(folder / ROOT), budget)


def smoke_plan(folder: Path) -> StreamPlan:
    """Return two tiny tasks, made on the spot, with a random root: it proves that the benchmark works, nothing else."""
    if not folder.exists():
        rng = np.random.default_rng(0)
        write_digits(folder / "parity", lambda digit: ("even", "odd")[digit % 2], rng)
        write_shapes(folder / "shapes", rng)
    return StreamPlan(_at(32, "parity", "shapes"), folder, SMOKE_ROOT, budget=0.05, families=("finetune", "probe"))
