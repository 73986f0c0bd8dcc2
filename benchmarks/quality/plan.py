"""The stream of tasks and what each may cost."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evolve.config import EvolveConfig
from evolve.demo_data import write_digits, write_shapes
from tests.shared_data import shared_folder

FAMILIES = ("finetune", "freeze:6", "adapters:32", "probe")
ROOT = "weights/vit_tiny_patch16_224.safetensors"
ROOT_SCALE = (0.5, 0.5, 0.5)  # mean, and standard deviation too, of the pixels that these weights were trained with
SMOKE_ROOT = "random:embed_dim=32,depth=3,num_heads=2,patch_size=8,image_size=32"
# Images that a task's whole evolution trains on, by the largest image size of its baselines. At about 500 and 200
# images a second with all blocks trained (2 cores), a task and its four baseline families take some 3 minutes.
IMAGES = {32: 16_000, 64: 8_000}
# Few candidates, most parts their own, and a second generation that trains four times as long as the first: the
# winner descends from a line that trained on half of all images, as long as a baseline's final run. Six blocks
# bound parameters and FLOPs. Chosen on the validation accuracy of devanagari, bangla, sign_digits and hymenoptera.
SEARCH = EvolveConfig(
    generations=2,
    children_per_generation=2,
    growth=4.0,
    epochs=1e9,  # the budget is in images
    max_depth=6,
    depth_jump=True,
    rank_parents=True,
    probe_head=True,
    mutation_rate=0.2,
    clone_rate=0.8,
    learning_rate=0.05,
    compute_penalty=0.9,
    size_penalty=0.98,
)


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
        lengths = sum(SEARCH.growth**generation for generation in range(SEARCH.generations))
        images = max(
            64, int(self.budget * IMAGES[max(task.baseline_sizes)] / (SEARCH.children_per_generation * lengths))
        )
        return replace(SEARCH, max_images=images, image_size=task.image_size, seed=seed)


STREAM = (
    TaskPlan("devanagari", 32, (32,)),
    TaskPlan("bangla", 32, (32,)),
    TaskPlan("sign_digits", 64, (32, 64)),
    TaskPlan("hymenoptera", 64, (32, 64)),
    TaskPlan("hoda_farsi", 32, (32,)),
    TaskPlan("gtsrb", 32, (32,)),
    TaskPlan("pacs_sketch", 64, (32, 64)),
    TaskPlan("kannada_mnist", 32, (32,)),
    TaskPlan("cifar10", 64, (32, 64)),
    TaskPlan("fashion_mnist", 32, (32,)),
    TaskPlan("magnetic_tile", 64, (32, 64)),
    TaskPlan("notmnist", 32, (32,)),
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
    return StreamPlan(
        (TaskPlan("parity", 32, (32,)), TaskPlan("shapes", 32, (32,))),
        folder,
        SMOKE_ROOT,
        budget=0.05,
        families=("finetune", "probe"),
    )
