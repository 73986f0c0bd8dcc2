"""A tiny real system for the tests: a random root of two blocks, toy tasks that Pillow draws, and their store."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw

from evolve.config import EvolveConfig
from evolve.loop import evolve_task
from evolve.publish import create_store
from evolve.task import Task, load_task
from models.names import TaskName
from models.root import load_root
from models.store import Store
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from tests.real_server import RealServer

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


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_image_folder(tmp_path_factory.mktemp("toy") / "images")


def load_toy_task(name: str, folder: Path, cache_folder: Path) -> Task:
    return load_task(TaskName(name), folder, seed=0, cache_folder=cache_folder)


@pytest.fixture(scope="session")
def _made_tiny_store(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "store"
    store = create_store(folder, load_root(TINY_ROOT))
    for name in ("shapes_a", "shapes_b"):
        evolve_task(load_toy_task(name, toy_folder, folder.parent / "pixels"), store, TINY_CONFIG)
    return folder


@pytest.fixture
def tiny_store(_made_tiny_store: Path, tmp_path: Path) -> Path:
    """The folder of a store with two tasks, `shapes_a` and `shapes_b`; this test's own copy."""
    return Path(shutil.copytree(_made_tiny_store, tmp_path / "store"))


@pytest.fixture
def opened_store(tiny_store: Path) -> Store:
    return Store.open(tiny_store)


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A running S3 server, which this process's clients find by its environment."""
    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return _s3_server


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[RealServer]":
    from tests.real_server import serving  # takes a second to import, for two tests

    with serving(tmp_path_factory.mktemp("real")) as server:
        yield server


@pytest.fixture
def toy_task(toy_folder: Path, tmp_path: Path) -> Task:
    """A third task, not in the store."""
    return load_toy_task("shapes_c", toy_folder, tmp_path / "pixels")


@pytest.fixture(params=["onednn", "mkl"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have one library after the other multiply float32 matrices, whatever this CPU is."""
    monkeypatch.setattr("evolve.products.prefers_onednn", lambda: request.param == "onednn")
    return str(request.param)
