"""The stream of tasks and what each may cost."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evolve.config import EvolveConfig
from evolve.demo_data import write_digits, write_shapes
from evolve.halving import num_going_on
from evolve.hparams import DataHParams
from evolve.probe import FIT_IMAGES
from evolve.run import RANKED_SEEDS
from tests.support.shared_data import shared_folder

FAMILIES = ("finetune", "freeze:6", "adapters:32", "probe")
ROOT = "weights/vit_tiny_patch16_224.safetensors"
ROOT_SCALE = (0.5, 0.5, 0.5)  # mean, and standard deviation too, of the pixels that these weights were trained with
# Times a probe's images: what a task may see beside its training and a probe of each parent that there could be, and
# how much of all is left unused, for lengths rounded up to whole batches and the probes of both first children.
SPARE_PROBES, UNUSED_PROBES = 5, 3
SMOKE_ROOT = "random:embed_dim=32,depth=3,num_heads=2,patch_size=8,image_size=32"
# Two short trainings say which parent to start from, then the better one's child trains sixteen times as long; of each
# two the worse stops at the first of eight validations. So the last training has 84 of 100 images. With 64 of 100 (four
# times as long, four validations) validation accuracy was .37 instead of .39 (tiny_imagenet), .969 instead of .972
# (mnist), .912 instead of .918 (chinese_mnist).
SEARCH = EvolveConfig(
    generations=2,
    children_per_generation=2,
    growth=16.0,
    validations=8,
    halving=True,
    epochs=1e9,  # the budget is in images
    rank_parents=True,
    probe_head=True,
    mutation_rate=0.02,  # a long last training must not be spent on many moves at once
    clone_rate=0.9,
    learning_rate=0.05,
    compute_penalty=0.9,
    size_penalty=0.98,
)
# What each kind of image starts from was settled by validation accuracy, on tasks outside of the stream where there
# are any of the kind: mnist and chinese_mnist for what is drawn, pacs_cartoon and dtd10 for photographs, tiny_imagenet
# for objects. Drawn things want few blocks, but most of the pixels that they have (64 x 4 blocks .970 and .942, 48 x 5
# .966 and .926, 48 x 4 .958 and .922); photographs more of the pretrained blocks (7 and 8 .79 and .70, 6 .75 and .68,
# 12 with as many images as a baseline's last training .78 and .70); objects all of them (12 .35, 10 .30, 8 .21, at 48
# pixels .25), and a head of zeros: behind twelve pretrained blocks a probe's weights cost 7 points, elsewhere they are
# worth up to one. So pixels are bounded as blocks are: one move of them would hold for all of the last, long training,
# with nothing to be compared with. For which kind sign_digits, gtsrb and magnetic_tile are taken, their own validation
# accuracy said.
# Cropping is left to mutation: it helps some and harms others.
GLYPHS = replace(SEARCH, image_size=64, min_image_size=64, max_image_size=64, min_depth=4, max_depth=4)
SMALL_GLYPHS = replace(GLYPHS, image_size=48, min_image_size=48, max_image_size=48, max_depth=5)  # of 28 to 32 pixels
PHOTOS = replace(SEARCH, image_size=64, min_image_size=64, max_image_size=64, min_depth=7, max_depth=7, flip=True)
OBJECTS = replace(PHOTOS, min_depth=12, max_depth=12, probe_head=False)
SMOKE = replace(SEARCH, image_size=32)
BASELINE_SIZES = (32, 64)  # pixels: the grid of the baselines


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """A task of the stream: how it is searched, and how many images that may take beside probes."""

    name: str
    search: EvolveConfig
    images: int
    baseline_sizes: tuple[int, ...] = BASELINE_SIZES

    def config(self, images: int, seed: int) -> EvolveConfig:
        """Return the search whose candidates train on `images` images all together."""
        lengths = sum(self.search.growth**generation for generation in range(self.search.generations))
        images = max(64, int(images / (runs_of_a_generation(self.search) * lengths)))
        return replace(self.search, max_images=images, seed=seed)

    def augmentation(self) -> DataHParams:
        """Return what the search starts with, which the baselines get as well."""
        return self.search.first_data(self.baseline_sizes[0])


def runs_of_a_generation(config: EvolveConfig) -> float:
    """Return how many whole training runs a generation is worth, halved after each validation."""
    going_on, runs = config.children_per_generation, 0.0
    for _ in range(config.validations):
        runs += going_on / config.validations
        going_on = num_going_on(going_on) if config.halving else going_on
    return runs


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """All that a run of the benchmark does."""

    tasks: tuple[TaskPlan, ...]
    data_folder: Path
    root: str
    budget: float  # times each task's images
    families: tuple[str, ...] = FAMILIES

    def images(self, task: TaskPlan) -> int:
        """Return how many images a task's evolution may see, probes included, and each family of baselines as well."""
        parents = min(self.tasks.index(task) + 2, RANKED_SEEDS)
        return int(self.budget * task.images) + FIT_IMAGES * (parents + SPARE_PROBES)

    def config(self, task: TaskPlan, seed: int) -> EvolveConfig:
        """Return the search on all those images that ranking does not take: it looks at routes of a fitting depth."""
        lowest, highest = task.search.min_depth, task.search.max_depth or 0
        earlier = [other.search for other in self.tasks[: self.tasks.index(task)]]
        fitting = [one for one in earlier if one.min_depth <= highest and (one.max_depth or 0) >= lowest]
        ranking = task.search.rank_images * min(len(fitting) + 1, RANKED_SEEDS)
        return task.config(self.images(task) - ranking - FIT_IMAGES * UNUSED_PROBES, seed)


STREAM = (
    TaskPlan("devanagari", GLYPHS, 12_000),
    TaskPlan("bangla", GLYPHS, 12_000),
    TaskPlan("sign_digits", PHOTOS, 8_000),
    TaskPlan("hymenoptera", PHOTOS, 5_000),
    TaskPlan("hoda_farsi", GLYPHS, 12_000),
    TaskPlan("gtsrb", SMALL_GLYPHS, 12_000),
    TaskPlan("pacs_sketch", PHOTOS, 8_000),
    TaskPlan("kannada_mnist", SMALL_GLYPHS, 12_000),
    TaskPlan("cifar10", OBJECTS, 12_000),
    TaskPlan("fashion_mnist", SMALL_GLYPHS, 12_000),
    TaskPlan("magnetic_tile", PHOTOS, 8_000),
    TaskPlan("notmnist", SMALL_GLYPHS, 12_000),
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
        (TaskPlan("parity", SMOKE, 1_000, (32,)), TaskPlan("shapes", SMOKE, 1_000, (32,))),
        folder,
        SMOKE_ROOT,
        budget=1.0,
        families=("finetune", "probe"),
    )
