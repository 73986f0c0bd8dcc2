"""A tiny real system for the tests: a random root of two blocks, toy tasks that Pillow draws, and their store."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evolve.loop import evolve_task
from evolve.publish import create_store
from evolve.task import Task
from models.root import load_root
from models.store import Store
from tests.support.s3_server import S3Server
from tests.support.tiny import TINY_CONFIG, TINY_ROOT, draw_image_folder, load_toy_task

if TYPE_CHECKING:
    from tests.support.real_server import RealServer


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_image_folder(tmp_path_factory.mktemp("toy") / "images")


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
    from tests.support.real_server import serving  # takes a second to import, for two tests

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
