"""Real tasks and the real root for the benchmarks, cut to a size that minutes allow."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from evolve.publish import create_store
from evolve.task import LabelledImages, Task, load_task
from models.names import TaskName
from models.root import load_root
from models.store import Store
from tests.support.shared_data import VARIABLE, shared_folder

CACHE = Path(__file__).parents[2] / ".cache" / "pixels"


def real_task(name: str, *, train: int, val: int) -> Task:
    """Return a data set with at most so many images to train on and to select on, none to test on."""
    loaded = load_task(TaskName(name), _file(f"datasets/{name}.zip"), seed=0, cache_folder=CACHE)
    digest = f"{loaded.digest} {train} {val}"
    return replace(loaded, train=_some(loaded.train, train), val=_some(loaded.val, val), test=None, digest=digest)


def real_store(folder: Path) -> Store:
    """Return a new store that grew nothing yet from a pretrained ViT-Ti/16."""
    root = load_root(str(_file("weights/vit_tiny_patch16_224.safetensors")), mean=(0.5,) * 3, std=(0.5,) * 3)
    return create_store(folder, root)


def _some(images: LabelledImages, count: int) -> LabelledImages:
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    return replace(
        images,
        names=tuple(images.names[at] for at in chosen),
        labels=images.labels[chosen],
        digests=tuple(images.digests[at] for at in chosen),
    )


def _file(name: str) -> Path:
    path = shared_folder() / name
    if not path.is_file():
        sys.exit(f"{path} is missing: set {VARIABLE} to the folder with the data sets and weights")
    return path
